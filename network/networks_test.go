package network_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

type node struct {
	*network.Networks
	t    testing.TB
	fake *networktest.Fake
	o    network.Options
}

// newNode returns a node's networks on a fake data plane.
func newNode(t testing.TB, change ...func(*network.Options)) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, fake: networktest.NewFake()}
	n.o = network.Options{
		Dataplane: n.fake, Dir: filepath.Join(dir, "network"), RuntimeDir: filepath.Join(dir, "run"), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) },
	}
	for _, c := range change {
		c(&n.o)
	}
	n.restart()
	return n
}

// restart opens the same node again, as after kill -9.
func (n *node) restart(keep ...string) {
	n.t.Helper()
	var err error
	if n.Networks, err = network.New(n.t.Context(), n.o); err != nil {
		n.t.Fatal(err)
	}
	if err := n.Keep(n.t.Context(), keep); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) join(id string, nets ...string) *network.Joined {
	n.t.Helper()
	j, err := n.Join(n.t.Context(), id, in(nets...), nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return j
}

func in(nets ...string) map[string]*dnet.EndpointSettings {
	m := map[string]*dnet.EndpointSettings{}
	for _, name := range nets {
		m[name] = nil
	}
	return m
}

func (n *node) create(q dnet.CreateRequest) string {
	n.t.Helper()
	r, err := n.Create(n.t.Context(), &q)
	if err != nil {
		n.t.Fatal(err)
	}
	return r.ID
}

func ports(spec ...string) dnet.PortMap {
	m := dnet.PortMap{}
	for i := 0; i < len(spec); i += 3 {
		b := dnet.PortBinding{HostPort: spec[i+2]}
		if spec[i+1] != "" {
			b.HostIP = netip.MustParseAddr(spec[i+1])
		}
		p := dnet.MustParsePort(spec[i])
		m[p] = append(m[p], b)
	}
	return m
}

func TestJoinAndLeave(t *testing.T) {
	n := newNode(t)
	j := n.join("c1", "bridge")
	e := j.Endpoints["bridge"]
	if e == nil || e.IPAddress.String() != "172.17.0.2" || e.Gateway.String() != "172.17.0.1" || e.IPPrefixLen != 16 ||
		e.MacAddress.String() != "02:42:ac:11:00:02" || len(e.EndpointID) != 64 || j.Path == "" {
		t.Fatalf("got %+v", e)
	}
	if again := n.join("c1", "bridge"); again.Endpoints["bridge"].EndpointID != e.EndpointID {
		t.Error("joining again made another endpoint")
	}
	if got := n.join("c2", "default").Endpoints["bridge"].IPAddress.String(); got != "172.17.0.3" {
		t.Errorf("the second container has %s", got)
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Errorf("leaving twice: %v", err)
	}
	if got := n.join("c3", "bridge").Endpoints["bridge"].IPAddress.String(); got != "172.17.0.4" {
		t.Errorf("the third container has %s, just freed", got)
	}
	if there := n.fake.There(); len(there.Sandboxes) != 2 || there.Bridges["legion0"] == nil {
		t.Errorf("there is\n%s", there)
	}
}

// Where nobody is found by name, nobody can be called something.
func TestNoAliasesInPredefinedNetworks(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"bridge", "host", "none"} {
		_, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{name: {Aliases: []string{"x"}}}, nil)
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "supported only for containers in user defined networks") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHostAndNone(t *testing.T) {
	n := newNode(t)
	if j := n.join("h", "host"); j.Path != "" || j.Endpoints["host"] == nil {
		t.Errorf("host: %+v", j)
	}
	if j := n.join("n", "none"); j.Path == "" || j.Endpoints["none"] == nil {
		t.Errorf("none: %+v", j)
	}
	if j := n.join("e"); j.Path == "" || len(j.Endpoints) != 0 {
		t.Errorf("no network: %+v", j)
	}
	if _, err := n.Join(t.Context(), "x", in("host", "bridge"), nil); !api.Is(err, api.Invalid) {
		t.Errorf("host and bridge: %v", err)
	}
	if c := n.fake.There(); len(c.Sandboxes) != 2 || c.Sandboxes["h"] != nil {
		t.Errorf("there is\n%s", c)
	}
}

func TestPortsAreTaken(t *testing.T) {
	n := newNode(t)
	j, err := n.Join(t.Context(), "c1", in("bridge"), ports("80/tcp", "", "8080"))
	if err != nil {
		t.Fatal(err)
	}
	if b := j.Ports[dnet.MustParsePort("80/tcp")]; len(b) != 2 || b[0].HostPort != "8080" || b[0].HostIP.String() != "0.0.0.0" || b[1].HostIP.String() != "::" {
		t.Errorf("published as %v", b)
	}
	for _, c := range []struct{ name, host, port, want string }{
		{"the same", "", "8080", "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{"one address of all", "10.0.0.1", "8080", "Bind for 10.0.0.1:8080 failed: port is already allocated"},
		{"not a number", "", "http", "must be a number"},
	} {
		if _, err := n.Join(t.Context(), "c2", in("bridge"), ports("80/tcp", c.host, c.port)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if c := n.fake.There(); len(c.Sandboxes) != 1 || len(c.Ports) != 2 {
		t.Errorf("there is\n%s", c)
	}
	if j, err = n.Join(t.Context(), "c2", in("bridge"), ports("80/tcp", "", "8080-8090")); err != nil || j.Ports[dnet.MustParsePort("80/tcp")][0].HostPort != "8081" {
		t.Errorf("a range: %v, %v", j, err)
	}
	if _, err = n.Join(t.Context(), "c3", in("bridge"), ports("80/udp", "", "8080")); err != nil {
		t.Errorf("the same port with another protocol: %v", err)
	}
}

func TestPortOfAHostProcess(t *testing.T) {
	n := newNode(t)
	key := func(port uint16) network.PortKey {
		return network.PortKey{Protocol: network.TCP, Host: netip.AddrPortFrom(netip.IPv4Unspecified(), port)}
	}
	n.fake.Occupy(key(80))
	n.fake.Occupy(key(49153))
	_, err := n.Join(t.Context(), "c1", in("bridge"), ports("80/tcp", "", "80"))
	if !api.Is(err, api.Conflict) || !strings.HasPrefix(err.Error(), "Bind for 0.0.0.0:80 failed: port is already allocated") {
		t.Errorf("got %v", err)
	}
	if c := n.fake.There(); len(c.Sandboxes) != 0 || len(c.Ports) != 0 {
		t.Errorf("left behind:\n%s", c)
	}
	j, err := n.Join(t.Context(), "c1", in("bridge"), ports("80/tcp", "", ""))
	if err != nil || j.Ports[dnet.MustParsePort("80/tcp")][0].HostPort != "49154" {
		t.Errorf("any port: %+v, %v", j, err)
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t)
	id := n.create(dnet.CreateRequest{Name: "web", Labels: map[string]string{"a": "b"}})
	e := n.join("c1", "web").Endpoints["web"]
	n.join("c2", "bridge")
	if _, err := n.Join(t.Context(), "c3", in("web"), ports("80/tcp", "", "8080")); err != nil {
		t.Fatal(err)
	}
	before := n.fake.There().String()
	n.restart("c1", "c2", "c3")
	if after := n.fake.There().String(); after != before {
		t.Errorf("a restart changed\n%sto\n%s", before, after)
	}
	if got := n.join("c1", "web").Endpoints["web"]; got.EndpointID != e.EndpointID {
		t.Error("the endpoint is another")
	}
	if _, err := n.Join(t.Context(), "c4", in("web"), ports("80/tcp", "", "8080")); !api.Is(err, api.Conflict) {
		t.Errorf("the port of an adopted container: %v", err)
	}
	n.restart("c1")
	if c := n.fake.There(); len(c.Sandboxes) != 1 || c.Sandboxes["c1"] == nil || len(c.Ports) != 0 {
		t.Errorf("kept\n%s", c)
	}
	if n.fake.Made("c1") != 1 {
		t.Error("the sandbox was made anew")
	}
	if r, err := n.Inspect("web"); err != nil || r.ID != id || r.Labels["a"] != "b" || len(r.Containers) != 1 {
		t.Errorf("inspect: %+v, %v", r, err)
	}
}

func TestTornFiles(t *testing.T) {
	n := newNode(t)
	n.join("c1", "bridge")
	for _, dir := range []string{n.o.Dir, n.o.RuntimeDir} {
		if err := os.WriteFile(filepath.Join(dir, "torn.json"), []byte(`{"Netw`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.restart("c1")
	if n.fake.Made("c1") != 1 {
		t.Error("a torn file of another cost a container its network")
	}
}

func TestConnectAndDisconnect(t *testing.T) {
	n := newNode(t)
	n.create(dnet.CreateRequest{Name: "a-inside", Internal: true})
	n.create(dnet.CreateRequest{Name: "zoo"})
	if _, err := n.Join(t.Context(), "c1", in("zoo"), ports("80/tcp", "", "8080")); err != nil {
		t.Fatal(err)
	}
	e, err := n.Connect(t.Context(), "c1", "a-inside", nil)
	if err != nil || e.Gateway.IsValid() {
		t.Fatalf("an internal network: %+v, %v", e, err)
	}
	if _, err := n.Connect(t.Context(), "c1", "a-inside", nil); !api.Is(err, api.PermissionDenied) {
		t.Errorf("twice: %v", err)
	}
	if e, err = n.Connect(t.Context(), "c1", "bridge", nil); err != nil {
		t.Fatal(err)
	}
	s := n.fake.There().Sandboxes["c1"]
	if len(s.Interfaces) != 3 || s.Gateway4 != e.Gateway {
		t.Errorf("the sandbox is %s", s)
	}
	for _, p := range n.fake.There().Ports {
		if p.Target.Addr() != e.IPAddress {
			t.Errorf("the port leads to %s, not to the address with the default route", p.Target)
		}
	}
	if err := n.Disconnect(t.Context(), "c1", "bridge", false); err != nil {
		t.Fatal(err)
	}
	if err := n.Disconnect(t.Context(), "c1", "bridge", false); !api.Is(err, api.NotFound) {
		t.Errorf("twice: %v", err)
	}
	if err := n.Disconnect(t.Context(), "c1", "bridge", true); err != nil {
		t.Errorf("twice by force: %v", err)
	}
	if s := n.fake.There().Sandboxes["c1"]; len(s.Interfaces) != 2 || s.Gateway4.String() != "172.19.0.1" {
		t.Errorf("the sandbox is %s", s)
	}
}

func TestFailureLeavesNothing(t *testing.T) {
	n := newNode(t)
	before := n.fake.There().String()
	n.fake.Fail(network.SandboxItem("c1"), errors.New("no more devices"))
	if _, err := n.Join(t.Context(), "c1", in("bridge"), ports("80/tcp", "", "80")); err == nil || !strings.Contains(err.Error(), "no more devices") {
		t.Errorf("got %v", err)
	}
	n.fake.Fail(network.SandboxItem("c1"), nil)
	if after := n.fake.There().String(); after != before {
		t.Errorf("left behind:\n%s", after)
	}
	if entries, err := os.ReadDir(n.o.RuntimeDir); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if r, err := n.Inspect("bridge"); err != nil || len(r.Containers) != 0 || r.Status.IPAM.Subnets[netip.MustParsePrefix("172.17.0.0/16")].IPsInUse != 3 {
		t.Errorf("inspect: %+v, %v", r, err)
	}
}

// Many joins at once share calls of Set, and get different addresses.
func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	before := n.fake.Sets()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := n.Join(t.Context(), fmt.Sprintf("c%d", i), in("bridge"), ports("80/tcp", "", "")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c := n.fake.There()
	seen := map[netip.Prefix]bool{}
	for _, s := range c.Sandboxes {
		seen[s.Interfaces[0].Addresses[0]] = true
	}
	if len(seen) != 50 || len(c.Ports) != 100 {
		t.Errorf("%d addresses, %d ports", len(seen), len(c.Ports))
	}
	t.Logf("50 joins in %d calls of Set", n.fake.Sets()-before)
}

func TestRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.join("c1", "bridge")
		want := n.fake.There().String()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		synctest.Wait()
		n.fake.Damage("legion0")
		time.Sleep(time.Second) // of the bubble's clock
		if got := n.fake.There().String(); got != want {
			t.Errorf("after a second there is\n%s", got)
		}
		n.fake.Fail(network.BridgeItem("legion0"), errors.New("no"))
		n.fake.Damage("legion0")
		time.Sleep(time.Second)
		n.fake.Fail(network.BridgeItem("legion0"), nil)
		sets := n.fake.Sets()
		time.Sleep(time.Minute)
		if got := n.fake.There().String(); got != want {
			t.Errorf("what could not be repaired at first is not tried again: there is\n%s", got)
		}
		if n.fake.Sets()-sets > 2 {
			t.Errorf("%d calls of Set in a quiet minute", n.fake.Sets()-sets)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestClose(t *testing.T) {
	n := newNode(t)
	n.join("c1", "bridge")
	if err := n.Close(t.Context(), true); !api.Is(err, api.Conflict) {
		t.Errorf("with a container: %v", err)
	}
	if err := n.Leave(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if c := n.fake.There(); len(c.Bridges)+len(c.Sandboxes) != 0 {
		t.Errorf("left behind:\n%s", c)
	}
	if _, err := os.Stat(n.o.RuntimeDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %s, %v", n.o.RuntimeDir, err)
	}
	if _, err := n.Join(t.Context(), "c2", in("bridge"), nil); err == nil {
		t.Error("joined after Close")
	}
}
