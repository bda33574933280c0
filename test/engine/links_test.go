package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// TestLinks: in the default network a container's hosts tells of those that it links to,
// and follows where they go.
func TestLinks(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	inBridge := func(links ...string) func(o *engine.CreateOptions) {
		return func(o *engine.CreateOptions) { o.Host.NetworkMode, o.Host.Links = "bridge", links }
	}
	db := r.create(t, "db", inBridge(), "sleep")
	web := r.create(t, "web", inBridge("db", "db:base"), "sleep")
	if err := r.ContainerStart(t.Context(), web); !api.Is(err, api.Conflict) || !strings.Contains(err.Error(), "Cannot link to a non running container: /db AS /web/db") {
		t.Errorf("before the other: %v", err)
	}
	r.start(t, db)
	r.start(t, web)
	address := func() string {
		t.Helper()
		i, err := r.ContainerInspect(t.Context(), "db", false)
		if err != nil {
			t.Fatal(err)
		}
		return i.NetworkSettings.Networks[network.NetworkBridge].IPAddress.String()
	}
	hosts := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.cfg.DataRoot, "containers", web, "hosts"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := func() string { return address() + "\tdb " + db[:12] + "\n" + address() + "\tbase " + db[:12] + " db\n" }
	if got := hosts(); !strings.Contains(got, want()) {
		t.Errorf("hosts\n%s\nwant\n%s", got, want())
	}
	i, err := r.ContainerInspect(t.Context(), web, false)
	if err != nil || strings.Join(i.HostConfig.Links, " ") != "/db:/web/db /db:/web/base" {
		t.Errorf("shown: %+v, %v", i.HostConfig.Links, err)
	}
	was := address()
	if err := r.ContainerRestart(t.Context(), db, engine.StopOptions{Signal: "SIGKILL"}); err != nil {
		t.Fatal(err)
	}
	if was == address() {
		t.Fatalf("the fake gave the address %s again", was)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(hosts(), want()) || strings.Contains(hosts(), was+"\t"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("hosts\n%s\nwant\n%s", hosts(), want())
		}
	}
	elsewhere := r.create(t, "elsewhere", func(o *engine.CreateOptions) { o.Host.NetworkMode = "netown" }, "sleep")
	r.start(t, elsewhere)
	lost := r.create(t, "lost", inBridge("elsewhere"), "sleep")
	if err := r.ContainerStart(t.Context(), lost); err == nil || !strings.Contains(err.Error(), "Cannot link to /elsewhere, as it does not belong to the default network") {
		t.Errorf("in another network: %v", err)
	}
}

// TestSharedNetworkName: who shares another's network has its host name.
func TestSharedNetworkName(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	r.create(t, "one", func(o *engine.CreateOptions) {
		o.Host.NetworkMode, o.Config.Hostname, o.Config.Domainname = "bridge", "h", "example.com"
	}, "sleep")
	id := r.create(t, "two", func(o *engine.CreateOptions) { o.Host.NetworkMode = "container:one" }, "sleep")
	i, err := r.ContainerInspect(t.Context(), id, false)
	if err != nil || i.Config.Hostname != "h" || i.Config.Domainname != "example.com" {
		t.Errorf("%+v, %v", i.Config, err)
	}
	_, err = r.ContainerCreate(t.Context(), engine.CreateOptions{
		Config: &container.Config{Image: "app:1", ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}},
		Host:   &container.HostConfig{NetworkMode: "container:one"},
	})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "port exposing and the container type network mode") {
		t.Errorf("exposing: %v", err)
	}
}
