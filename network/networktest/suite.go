package networktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// Harness is what the suite needs of an implementation: a host of its own with
// nothing on it.
type Harness struct {
	Plane network.Dataplane
	// Reopen ends the data plane, as a daemon that is killed does, and returns
	// another on the same host.
	Reopen func() network.Dataplane
	// Observe tells what is really there, as far as Visible keeps it.
	Observe func() *network.Config
	// Occupy takes a port as another process of the host would.
	Occupy func(network.PortKey) (release func())
	// Damage removes a bridge as an administrator would.
	Damage func(device string)
	// Ask asks a sandbox's resolver.
	Ask func(sandbox, name string, v6 bool) Answer
	// Identity tells one incarnation of a sandbox from the next.
	Identity func(sandbox string) string
}

// Visible returns a config without what can't be read back from a kernel, or not
// easily: switches, and most of what is expressed by rules only. Of ports of the
// mesh it keeps what there is by IPv4.
func Visible(c *network.Config) *network.Config {
	v := (*network.Config)(nil).Clone()
	for n, b := range c.Bridges {
		v.Bridges[n] = &network.Bridge{Device: b.Device, Addresses: b.Addresses, MTU: b.MTU}
	}
	for id, o := range c.Overlays {
		q := *o
		q.Addresses = sorted(o.Addresses)
		if len(o.Peers) == 0 {
			q.VNI, q.Encrypted = 0, false // there is no tunnel
		}
		v.Overlays[id] = &q
	}
	for id, s := range c.Sandboxes {
		q := *s
		q.Resolver = nil
		q.Interfaces = slices.Clone(s.Interfaces)
		for i := range q.Interfaces {
			q.Interfaces[i].Routes = sorted(q.Interfaces[i].Routes)
		}
		v.Sandboxes[id] = &q
	}
	for k, p := range c.Ports {
		q := *p
		q.Sandbox = ""
		v.Ports[k] = &q
	}
	for k, b := range c.Balancers {
		if joined(c, k.Network) {
			v.Balancers[k] = b
		}
	}
	for k, p := range c.MeshPorts {
		q := &network.MeshPort{MeshKey: k, Target: p.Target}
		for _, a := range p.Backends {
			if a.Is4() {
				q.Backends = append(q.Backends, a)
			}
		}
		if len(q.Backends) == 0 {
			q.Target = 0 // it refuses
		}
		v.MeshPorts[k] = q
	}
	return v
}

// sorted returns prefixes whose order means nothing in theirs.
func sorted(l []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(l), netip.Prefix.Compare)
}

// Dataplane runs the conformance suite.
func Dataplane(t *testing.T, open func(t *testing.T) *Harness) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, h *Harness)
	}{
		{"set", testSet}, {"again", testAgain}, {"steps", testSteps}, {"reopen", testReopen}, {"clear", testClear},
		{"port in use", testPortInUse}, {"damage", testDamage}, {"counters", testCounters}, {"invalid", testInvalid},
		{"balancers", testBalancers}, {"host", testHost}, {"cancelled", testCancelled},
		{"names", testNames}, {"names reopen", testNamesReopen},
		{"mesh", testMesh}, {"mesh port in use", testMeshPortInUse},
		{"open ports", testOpen}, {"encrypted", testEncrypted}, {"narrow", testNarrow}, {"narrow unknown", testNarrowUnknown},
		{"subnets", testSubnets},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

// Sample returns a config with n sandboxes on each of two bridges, and a
// published port for each; and n more in an overlay that has peers on another
// node.
func Sample(n int) *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true}).Clone()
	for b := range 2 {
		br := &network.Bridge{
			Device: fmt.Sprintf("legion%d", b), MTU: 1400, Masquerade: true,
			Addresses: []netip.Prefix{netip.PrefixFrom(addr4(b, 0, 1), 16)},
		}
		if b == 1 {
			br.Addresses = append(br.Addresses, netip.MustParsePrefix("fd17::1/64"))
		}
		c.Bridges[br.Device] = br
		for i := range n {
			s := sandbox(fmt.Sprintf("s%d-%d", b, i), br, i+2)
			c.Sandboxes[s.ID] = s
			host := netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(20000+1000*b+i))
			k := network.PortKey{Protocol: network.TCP, Host: host}
			c.Ports[k] = &network.Port{PortKey: k, Target: netip.AddrPortFrom(addr4(b, (i+2)>>8, i+2), 80), Sandbox: s.ID}
		}
	}
	c.Underlay = network.Underlay{Local: netip.MustParseAddr("10.99.0.1"), Port: 4789}
	o := &network.Overlay{
		ID: "net1", VNI: 4096, MTU: 1350,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9.1/24"), netip.MustParsePrefix("fd09::1/64")},
		Peers: []network.Peer{
			{Address: netip.MustParseAddr("10.0.9.200"), Address6: netip.MustParseAddr("fd09::200"), Node: netip.MustParseAddr("10.99.0.2")},
			{Address: netip.MustParseAddr("10.0.9.201"), Address6: netip.MustParseAddr("fd09::201"), Node: netip.MustParseAddr("10.99.0.3")},
		},
	}
	c.Overlays[o.ID] = o
	for i := range n {
		s := &network.Sandbox{ID: fmt.Sprintf("o-%d", i), Interfaces: []network.Interface{overlaid(o, i+2)}}
		c.Sandboxes[s.ID] = s
	}
	return c
}

// overlaid is an interface in the overlay with number n.
func overlaid(o *network.Overlay, n int) network.Interface {
	a := netip.AddrFrom4([4]byte{10, 0, 9, byte(n)})
	a6 := o.Addresses[1].Addr().As16()
	a6[15] = byte(n)
	return network.Interface{
		Name: "eth0", HostName: fmt.Sprintf("vetho-%d", n), Overlay: o.ID, MTU: o.MTU,
		MAC:       net.HardwareAddr(append([]byte{2, 0x42}, a.AsSlice()...)).String(),
		Addresses: []netip.Prefix{netip.PrefixFrom(a, 24), netip.PrefixFrom(netip.AddrFrom16(a6), 64)},
	}
}

func addr4(b, hi, lo int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, byte(17 + b), byte(hi), byte(lo)})
}

func sandbox(id string, br *network.Bridge, n int) *network.Sandbox {
	b := int(br.Addresses[0].Addr().As4()[1]) - 17
	a := addr4(b, n>>8, n)
	f := network.Interface{
		Name: "eth0", HostName: fmt.Sprintf("veth%d-%d", b, n), Bridge: br.Device, MTU: 1400,
		MAC:       net.HardwareAddr(append([]byte{2, 0x42}, a.AsSlice()...)).String(),
		Addresses: []netip.Prefix{netip.PrefixFrom(a, 16)},
	}
	s := &network.Sandbox{ID: id, Gateway4: br.Addresses[0].Addr()}
	if len(br.Addresses) > 1 {
		a6 := netip.MustParseAddr("fd17::").As16()
		a6[14], a6[15] = byte(n>>8), byte(n)
		f.Addresses = append(f.Addresses, netip.PrefixFrom(netip.AddrFrom16(a6), 64))
		s.Gateway6 = br.Addresses[1].Addr()
	}
	s.Interfaces = []network.Interface{f}
	return s
}

func (h *Harness) set(t *testing.T, c *network.Config) {
	t.Helper()
	if err := h.Plane.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	h.expect(t, c)
}

func (h *Harness) expect(t *testing.T, c *network.Config) {
	t.Helper()
	if d := cmp.Diff(Visible(c).String(), Visible(h.Observe()).String()); d != "" {
		t.Fatalf("what is there (+) is not what was set (-):\n%s", d)
	}
}

func testSet(t *testing.T, h *Harness) { h.set(t, Sample(3)) }

func testAgain(t *testing.T, h *Harness) {
	c := Sample(2)
	h.set(t, c)
	before := h.Identity("s0-0")
	h.set(t, c.Clone())
	if h.Identity("s0-0") != before {
		t.Error("setting the same again replaced a sandbox")
	}
}

// testSteps goes from one random config to another.
func testSteps(t *testing.T, h *Harness) {
	rapid.Check(t, func(r *rapid.T) {
		for range 3 {
			c := Random(r)
			if err := h.Plane.Set(t.Context(), c); err != nil {
				r.Fatalf("%v\nfor %s", err, c)
			}
			if d := cmp.Diff(Visible(c).String(), Visible(h.Observe()).String()); d != "" {
				r.Fatalf("what is there (+) is not what was set (-):\n%s", d)
			}
			h.expectNames(r, c)
		}
	})
}

// Random draws a config: a part of Sample, with sandboxes that may be in both
// networks.
func Random(r *rapid.T) *network.Config {
	c := Sample(3)
	draw := func(what string) bool { return rapid.Bool().Draw(r, what) }
	if draw("only one bridge") {
		delete(c.Bridges, "legion1")
	} else if draw("bridge renumbered") {
		b := *c.Bridges["legion1"]
		b.Addresses = []netip.Prefix{netip.MustParsePrefix("172.30.0.1/16")}
		c.Bridges["legion1"] = &b
	}
	randomGateways(c, draw)
	randomOverlay(c, draw)
	for id, s := range c.Sandboxes {
		if f := &s.Interfaces[0]; f.Overlay == "" && c.Bridges[f.Bridge] == nil || f.Overlay != "" && c.Overlays[f.Overlay] == nil || draw("without "+id) {
			delete(c.Sandboxes, id)
		}
	}
	for id, s := range c.Sandboxes {
		if other := c.Bridges["legion1"]; other != nil && s.Interfaces[0].Bridge == "legion0" && draw("both "+id) {
			n := *s
			f := sandbox(id, Sample(0).Bridges["legion1"], 100+int(id[3])).Interfaces[0]
			f.Name = "eth1"
			n.Interfaces = append(append([]network.Interface{}, s.Interfaces...), f)
			c.Sandboxes[id] = &n
		}
	}
	for k, p := range c.Ports {
		if c.Sandboxes[p.Sandbox] == nil || draw("unpublished "+k.String()) {
			delete(c.Ports, k)
		}
	}
	openPorts(c)
	randomServices(c, draw)
	randomNames(c, draw)
	if draw("several subnets") {
		addSubnets(c)
	}
	return c
}

// randomOverlay changes the overlay, or takes it out.
func randomOverlay(c *network.Config, draw func(string) bool) {
	o := *c.Overlays["net1"]
	switch {
	case draw("no overlay"):
		delete(c.Overlays, o.ID)
		return
	case draw("no peers"):
		o.Peers = nil
	case draw("one peer"):
		o.Peers = o.Peers[1:]
	case draw("encrypted"):
		o.Encrypted, c.Keys = true, twoKeys()
	case draw("a peer has moved"):
		o.Peers = []network.Peer{o.Peers[0], o.Peers[1]}
		o.Peers[0].Node = netip.MustParseAddr("10.99.0.4")
	}
	if draw("other tunnel") {
		o.VNI = 5000
	}
	if draw("other port") {
		c.Underlay.Port = 4790
	}
	c.Overlays[o.ID] = &o
	if f := c.Sandboxes["o-0"]; f != nil && c.Bridges["legion0"] != nil && draw("with a way out") {
		s := *f
		out := sandbox("o-0", c.Bridges["legion0"], 200)
		out.Interfaces[0].Name = "eth1"
		s.Interfaces = append(append([]network.Interface{}, s.Interfaces...), out.Interfaces...)
		s.Gateway4 = out.Gateway4
		c.Sandboxes["o-0"] = &s
	}
}

func testReopen(t *testing.T, h *Harness) {
	c := Sample(2)
	h.set(t, c)
	before := h.Identity("s0-0")
	h.Plane = h.Reopen()
	h.expect(t, c)
	less := c.Clone()
	delete(less.Sandboxes, "s1-1")
	h.set(t, less)
	if h.Identity("s0-0") != before {
		t.Error("a data plane that was opened anew replaced a sandbox")
	}
}

func testClear(t *testing.T, h *Harness) {
	h.set(t, Sample(2))
	h.set(t, (*network.Config)(nil).Clone())
}

func testPortInUse(t *testing.T, h *Harness) {
	c := Sample(1)
	k := network.PortKey{Protocol: network.TCP, Host: netip.MustParseAddrPort("0.0.0.0:20000")}
	release := h.Occupy(k)
	err := h.Plane.Set(t.Context(), c)
	var se *network.SetError
	if !errors.As(err, &se) || !errors.Is(se.Items[network.PortItem(k)], network.ErrPortInUse) || len(se.Items) != 1 {
		t.Fatalf("error %v, not that %s is in use", err, k)
	}
	without := c.Clone()
	delete(without.Ports, k)
	h.expect(t, without)
	release()
	h.set(t, c)
}

func testDamage(t *testing.T, h *Harness) {
	c := Sample(2)
	h.set(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	noticed := make(chan struct{}, 1)
	watch := make(chan error, 1)
	go func() {
		watch <- h.Plane.Watch(ctx, func() {
			select {
			case noticed <- struct{}{}:
			default:
			}
		})
	}()
	for seen := false; !seen; {
		h.Damage("legion0")
		select {
		case <-noticed:
			seen = true
		case <-time.After(100 * time.Millisecond): // it wasn't watching yet
			h.set(t, withMTU(c)) // any change, so that there is a bridge to remove
			h.set(t, c)
		case <-ctx.Done():
			t.Fatal("a removed bridge goes unnoticed")
		}
	}
	h.set(t, c)
	cancel()
	if err := <-watch; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch returned %v", err)
	}
}

func withMTU(c *network.Config) *network.Config {
	n := c.Clone()
	b := *n.Bridges["legion0"]
	b.MTU = 1300
	n.Bridges["legion0"] = &b
	return n
}

func testCounters(t *testing.T, h *Harness) {
	h.set(t, Sample(1))
	l, err := h.Plane.Counters(t.Context(), "s0-0")
	if err != nil || len(l) != 1 || l[0].Interface != "eth0" {
		t.Errorf("counters %v, %v", l, err)
	}
	if _, err := h.Plane.Counters(t.Context(), "nobody"); !api.Is(err, api.NotFound) {
		t.Errorf("counters of nobody: %v", err)
	}
}

func testInvalid(t *testing.T, h *Harness) {
	c := Sample(1)
	c.Sandboxes["s0-0"].Interfaces[0].Bridge = "nowhere"
	err := h.Plane.Set(t.Context(), c)
	var se *network.SetError
	if err == nil || errors.As(err, &se) {
		t.Errorf("an interface on a bridge that isn't there: %v", err)
	}
	h.expect(t, &network.Config{})
}

func testHost(t *testing.T, h *Harness) {
	h.set(t, Sample(1))
	host, err := h.Plane.Host(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := host.Devices["legion0"]; !d.Own || !d.Bridge || len(d.Addresses) != 1 || d.Owner != "" {
		t.Errorf("its own bridge is described as %+v", d)
	}
	if d := host.Devices["up0"]; d.Own || d.MTU != 1400 {
		t.Errorf("the uplink's device is described as %+v", d)
	}
	if host.MTU != 1400 || len(host.Prefixes) == 0 {
		t.Errorf("the uplink is described as %+v", host)
	}
	for _, p := range host.Prefixes {
		if p.Overlaps(netip.MustParsePrefix("172.17.0.0/16")) {
			t.Errorf("its own subnet %s is said to be somebody else's", p)
		}
	}
}

func testCancelled(t *testing.T, h *Harness) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Plane.Set(ctx, Sample(1)); err == nil {
		t.Error("Set with an ended context succeeded")
	}
	h.set(t, Sample(1))
}
