package test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// TestNames: a container that comes into a network with names asks its own
// resolver from then on, and is found by the name that it is given.
func TestNames(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "one", func(o *engine.CreateOptions) { o.Host.NetworkMode = "bridge" }, "sleep")
	r.start(t, id)
	resolv := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.cfg.DataRoot, "containers", id, "resolv.conf"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := resolv(); strings.Contains(got, "127.0.0.11") {
		t.Errorf("on the default bridge: %s", got)
	}
	if err := r.NetworkConnect(t.Context(), "netown", "one", &network.EndpointSettings{Aliases: []string{"alias"}}); err != nil {
		t.Fatal(err)
	}
	if got := resolv(); !strings.HasPrefix(got, "nameserver 127.0.0.11\n") || !strings.Contains(got, "ndots:0") {
		t.Errorf("connected: %s", got)
	}
	hosts := func() string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(r.cfg.DataRoot, "containers", id, "hosts"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := strings.Count(hosts(), id[:12]); got != 2 {
		t.Errorf("connected: %s", hosts())
	}
	if err := r.ContainerRename(t.Context(), "one", "two"); err != nil {
		t.Fatal(err)
	}
	i, err := r.ContainerInspect(t.Context(), "two", false)
	if err != nil {
		t.Fatal(err)
	}
	if names := strings.Join(i.NetworkSettings.Networks["netown"].DNSNames, " "); names != "two alias "+id[:12] {
		t.Errorf("names %s", names)
	}
	if err := r.NetworkDisconnect(t.Context(), "netown", "two", false); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(hosts(), id[:12]); got != 1 {
		t.Errorf("disconnected: %s", hosts())
	}
}

// TestNamesKeepWhatIsWritten: a resolv.conf that somebody else has written stays.
func TestNamesKeepWhatIsWritten(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "one", func(o *engine.CreateOptions) { o.Host.NetworkMode = "bridge" }, "sleep")
	r.start(t, id)
	path := filepath.Join(r.cfg.DataRoot, "containers", id, "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 10.0.0.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.NetworkConnect(t.Context(), "netown", "one", nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "nameserver 10.0.0.9\n" {
		t.Errorf("%s, %v", b, err)
	}
}

// TestNetworksOfTheStopped: events say what kind of network a container comes into,
// and one that has ended is still shown with the networks that it was in.
func TestNetworksOfTheStopped(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "one", func(o *engine.CreateOptions) { o.Host.NetworkMode = "bridge" }, "sleep")
	r.start(t, id)
	if err := r.NetworkConnect(t.Context(), "id-of-netown", "one", nil); err != nil {
		t.Fatal(err)
	}
	if err := r.ContainerKill(t.Context(), "one", "KILL"); err != nil {
		t.Fatal(err)
	}
	want := []string{"connect bridge", "connect netown", "disconnect bridge", "disconnect netown"}
	var got []string
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := errors.New("ended")
	err := r.Events(ctx, engine.EventsOptions{Since: time.Unix(1, 0)}, func(m events.Message) error {
		if m.Type == events.ContainerEventType && m.Action == events.ActionDie {
			return ended
		}
		if m.Type == events.NetworkEventType {
			name := m.Actor.Attributes["name"]
			if m.Actor.ID != "id-of-"+name || m.Actor.Attributes["type"] != "driver-of-"+name {
				t.Errorf("event %+v", m)
			}
			got = append(got, string(m.Action)+" "+name)
		}
		return nil
	})
	slices.Sort(got)
	if !errors.Is(err, ended) || !slices.Equal(got, want) {
		t.Errorf("%v, events %q", err, got)
	}
	shown := func() map[string]*network.EndpointSettings {
		t.Helper()
		i, err := r.ContainerInspect(t.Context(), "one", false)
		if err != nil {
			t.Fatal(err)
		}
		return i.NetworkSettings.Networks
	}
	ep := shown()["netown"]
	if ep == nil || ep.NetworkID != "id-of-netown" || len(ep.DNSNames) != 2 || ep.DNSNames[0] != "one" || ep.EndpointID != "" || ep.IPAddress.IsValid() {
		t.Errorf("ended: %+v", ep)
	}
	if err := r.NetworkDisconnect(t.Context(), "id-of-netown", "one", false); err != nil {
		t.Fatal(err)
	}
	if l := shown(); len(l) != 1 || l["bridge"] == nil {
		t.Errorf("disconnected: %+v", l)
	}
}

// TestCreateNeedsOthers: what a container is made with has to be there. It is not
// NotFound, by which clients understand that the image is missing.
func TestCreateNeedsOthers(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	for what, with := range map[string]func(o *engine.CreateOptions){
		"network":   func(o *engine.CreateOptions) { o.Host.NetworkMode = "container:other" },
		"processes": func(o *engine.CreateOptions) { o.Host.PidMode = "container:other" },
		"memory":    func(o *engine.CreateOptions) { o.Host.IpcMode = "container:other" },
		"volumes":   func(o *engine.CreateOptions) { o.Host.VolumesFrom = []string{"other:ro"} },
		"link":      func(o *engine.CreateOptions) { o.Host.Links = []string{"other:alias"} },
		"some address": func(o *engine.CreateOptions) {
			o.Host.NetworkMode = "netown"
			o.Networking = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{
				"netown": {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.0.7")}},
			}}
		},
		"link without network": func(o *engine.CreateOptions) {
			o.Host.NetworkMode, o.Host.Links = "none", []string{"other"}
		},
	} {
		o := engine.CreateOptions{Name: "one", Config: &container.Config{Image: "app:1"}, Host: &container.HostConfig{}}
		with(&o)
		if _, err := r.ContainerCreate(t.Context(), o); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "other") && what != "some address" {
			t.Errorf("%s of another: %v", what, err)
		} else if says := "could not get container for other: No such container: other"; strings.HasPrefix(what, "link") && err.Error() != says {
			t.Errorf("%s: %v, want %s", what, err, says)
		}
	}
	if l, err := r.ContainerList(t.Context(), engine.ContainerListOptions{All: true}); err != nil || len(l) > 0 {
		t.Errorf("left: %+v, %v", l, err)
	}
	// In a network of one's own a link is a name, which may come to be later.
	o := engine.CreateOptions{Name: "one", Config: &container.Config{Image: "app:1"}, Host: &container.HostConfig{NetworkMode: "netown", Links: []string{"other:alias"}}}
	if _, err := r.ContainerCreate(t.Context(), o); err != nil {
		t.Error(err)
	}
}
