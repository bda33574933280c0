package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/legion-swarm/legion/network"
)

// pair is two nodes that have a container each in the overlays net1 and net2.
type pair struct {
	*world
	planes  [2]*Plane
	configs [2]*network.Config
}

// newPair makes the nodes 10.99.0.1 and 10.99.0.2; their containers are 10.0.N.2
// and 10.0.N.3. change changes each overlay first.
func newPair(t testing.TB, change func(*network.Overlay)) *pair {
	p := &pair{world: newWorld(t)}
	for i, host := range []string{p.host, p.outside} {
		p.planes[i] = p.planeOn(host, fmt.Sprint("node", i), "")
		p.configs[i] = pairConfig(i, change)
		p.ok(p.planes[i].Set(t.Context(), p.configs[i]))
	}
	return p
}

func pairConfig(i int, change func(*network.Overlay)) *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true}).Clone()
	c.Underlay = network.Underlay{Local: netip.AddrFrom4([4]byte{10, 99, 0, byte(1 + i)}), Port: 4789}
	for n := byte(1); n <= 2; n++ {
		o := &network.Overlay{ID: fmt.Sprint("net", n), VNI: 4096 + uint32(n), MTU: 1350, Addresses: pfx(fmt.Sprintf("10.0.%d.1/24", n), fmt.Sprintf("fd0%d::1/64", n))}
		at := func(i int) (a, a6 netip.Addr) {
			return netip.AddrFrom4([4]byte{10, 0, n, byte(2 + i)}), netip.MustParseAddr(fmt.Sprintf("fd0%d::%d", n, 2+i))
		}
		a, a6 := at(1 - i)
		o.Peers = []network.Peer{{Address: a, Address6: a6, Node: netip.AddrFrom4([4]byte{10, 99, 0, byte(2 - i)})}}
		if change != nil {
			change(o)
		}
		a, a6 = at(i)
		s := &network.Sandbox{ID: fmt.Sprint("c", n), Interfaces: []network.Interface{{
			Name: "eth0", HostName: fmt.Sprint("vethc", n), Overlay: o.ID, MAC: network.Peer{Address: a}.MAC().String(), MTU: o.MTU,
			Addresses: []netip.Prefix{netip.PrefixFrom(a, 24), netip.PrefixFrom(a6, 64)},
		}}}
		c.Overlays[o.ID], c.Sandboxes[s.ID] = o, s
	}
	return c
}

// vxlanFrame is an inner frame, UDP from one address to another's port 9, as a tunnel
// with the id sends it.
func vxlanFrame(vni uint32, from, to netip.Addr, payload string) []byte {
	b := []byte{8, 0, 0, 0}
	b = append(binary.BigEndian.AppendUint32(b, vni<<8), network.Peer{Address: to}.MAC()...)
	b = append(append(b, network.Peer{Address: from}.MAC()...), 8, 0)
	ip := []byte{0x45, 0, 0, byte(28 + len(payload)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	return append(append(append(b, ip...), 0, 7, 0, 9, 0, byte(8+len(payload)), 0, 0), payload...)
}

// What comes from others than the overlay's nodes, or to another address, is not
// let in, also after somebody has flushed the rules.
func TestTunnelGuard(t *testing.T) {
	w := newPair(t, nil)
	w.in(w.host, func() { w.address("up0", "10.99.0.11/24") })
	w.in(w.outside, func() { w.address("up0", "10.99.0.66/24") })
	var heard net.PacketConn
	w.in(w.planes[0].Path("c1"), func() {
		var err error
		heard, err = net.ListenPacket("udp4", ":9")
		w.ok(err)
	})
	defer heard.Close()
	own, peer, nobody := netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("10.0.1.3"), netip.MustParseAddr("10.0.1.99")
	send := func(from, to string, vni uint32, inner netip.Addr, text string) {
		t.Helper()
		w.in(w.outside, func() {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 4789})
			w.ok(err)
			defer c.Close()
			_, err = c.Write(vxlanFrame(vni, inner, own, text))
			w.ok(err)
		})
	}
	check := func() {
		t.Helper()
		send("10.99.0.66", "10.99.0.1", 4097, peer, "a stranger's")
		send("10.99.0.66", "10.99.0.11", 4097, peer, "a stranger's, to another address")
		send("10.99.0.2", "10.99.0.11", 4097, peer, "a peer's, to another address")
		send("10.99.0.2", "10.99.0.1", 4098, peer, "of another network")
		send("10.99.0.2", "10.99.0.1", 5000, peer, "of no network")
		send("10.99.0.2", "10.99.0.1", 4097, nobody, "from an unknown endpoint")
		send("10.99.0.2", "10.99.0.1", 4097, own, "from its own address")
		send("10.99.0.2", "10.99.0.1", 4097, peer, "a peer's")
		w.ok(heard.SetReadDeadline(time.Now().Add(3 * time.Second)))
		var got []string
		for buf := make([]byte, 100); len(got) == 0 || got[len(got)-1] != "a peer's"; {
			n, from, err := heard.ReadFrom(buf)
			if err != nil {
				t.Fatal(err, got)
			}
			if got = append(got, string(buf[:n])); string(buf[:n]) == "a peer's" && from.String() != "10.0.1.3:7" {
				t.Error(from)
			}
		}
		for _, s := range got {
			if s != "a peer's" && s != "from an unknown endpoint" {
				t.Errorf("let in: %s", s)
			}
		}
	}
	check()
	w.serve(w.planes[1].Path("c1"), ":80")
	if got := w.ask(w.planes[0].Path("c1"), "10.0.1.3:80"); got != "10.0.1.2" {
		t.Errorf("after forged frames the peer sees %q", got)
	}
	c, err := w.planes[0].connect()
	w.ok(err)
	c.FlushRuleset()
	w.ok(c.Flush())
	w.planes[0].stale.Store(true)
	w.ok(w.planes[0].Set(t.Context(), w.configs[0]))
	check()
	// A daemon that was started anew and knows nothing yet lets in what came before.
	again := w.planeOn(w.host, "node0", "")
	unknown := w.configs[0].Clone()
	unknown.Underlay = network.Underlay{}
	for id, o := range unknown.Overlays {
		q := *o
		q.Peers, q.Unknown = nil, true
		unknown.Overlays[id] = &q
	}
	w.ok(again.Set(t.Context(), unknown))
	check()
	more := w.configs[0].Clone()
	o := *more.Overlays["net1"]
	o.Peers = append([]network.Peer{}, o.Peers...)
	o.Peers = append(o.Peers, network.Peer{Address: netip.MustParseAddr("10.0.1.4"), Node: netip.MustParseAddr("10.99.0.66")})
	more.Overlays["net1"] = &o
	w.ok(again.Set(t.Context(), more))
	send("10.99.0.66", "10.99.0.1", 4097, netip.MustParseAddr("10.0.1.4"), "a peer's")
	w.ok(heard.SetReadDeadline(time.Now().Add(3 * time.Second)))
	if _, from, err := heard.ReadFrom(make([]byte, 100)); err != nil || from.String() != "10.0.1.4:7" {
		t.Error(from, err)
	}
	w.ok(again.Set(t.Context(), w.configs[0]))
	check()
}

// Whatever somebody does to an overlay is noticed and put back; the other overlay
// does not notice.
func TestOverlayDrift(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		w := newPair(t, nil)
		w.drift(t, overlayTunnel, func(h *netlink.Handle, l netlink.Link) []*netlink.Neigh {
			return entries(l, w.configs[0].Overlays["net1"].Peers[0])
		})
	})
	t.Run("encrypted", func(t *testing.T) {
		w := newEncrypted(t)
		w.drift(t, overlayCrypt, func(h *netlink.Handle, l netlink.Link) []*netlink.Neigh {
			b, err := h.LinkByName(overlayBridge)
			w.ok(err)
			return cryptEntries(l, b, w.configs[0].Overlays["net1"].Peers[0])
		})
	})
}

func (w *pair) drift(t *testing.T, tunnel string, entries func(h *netlink.Handle, l netlink.Link) []*netlink.Neigh) {
	p := w.planes[0]
	inside := func(f func(h *netlink.Handle)) func() {
		return func() {
			h, err := p.overlayHandle("net1")
			w.ok(err)
			defer h.Close()
			f(h)
		}
	}
	link := func(h *netlink.Handle, name string) netlink.Link {
		l, err := h.LinkByName(name)
		w.ok(err)
		return l
	}
	entry := func(i int) func() {
		return inside(func(h *netlink.Handle) {
			if all := entries(h, link(h, tunnel)); i < len(all) {
				w.ok(h.NeighDel(all[i]))
			} else {
				w.ok(h.LinkDel(link(h, tunnel)))
			}
		})
	}
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- p.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}()
	w.serve(w.planes[1].Path("c1"), ":80")
	other := w.lasting(w.planes[0].Path("c2"), w.planes[1].Path("c2"), "10.0.2.3:81")
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"tunnel removed", inside(func(h *netlink.Handle) { w.ok(h.LinkDel(link(h, tunnel))) })},
		{"tunnel down", inside(func(h *netlink.Handle) { w.ok(h.LinkSetDown(link(h, tunnel))) })},
		{"tunnel off its bridge", inside(func(h *netlink.Handle) { w.ok(h.LinkSetNoMaster(link(h, tunnel))) })},
		{"entry removed", entry(0)},
		{"next entry removed", entry(1)},
		{"third entry removed", entry(2)},
		{"last entry removed", entry(3)},
		{"bridge down", inside(func(h *netlink.Handle) { w.ok(h.LinkSetDown(link(h, overlayBridge))) })},
		{"bridge removed", inside(func(h *netlink.Handle) { w.ok(h.LinkDel(link(h, overlayBridge))) })},
		{"bridge without address", inside(func(h *netlink.Handle) {
			w.ok(h.AddrDel(link(h, overlayBridge), &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.0.1.1/24"))}))
		})},
		{"entry leads elsewhere", inside(func(h *netlink.Handle) {
			e := entries(h, link(h, tunnel))[0]
			if e.IP != nil {
				e.IP = net.IPv4(10, 99, 0, 77)
				w.ok(h.NeighSet(e))
			} else {
				w.ok(h.NeighDel(e))
			}
		})},
		{"container's end down", inside(func(h *netlink.Handle) { w.ok(h.LinkSetDown(link(h, "vethc1"))) })},
	} {
		t.Run(c.what, func(t *testing.T) {
			for len(changed) > 0 {
				<-changed
			}
			c.do()
			select {
			case <-changed:
			case <-time.After(5 * time.Second):
				t.Error("not noticed")
				p.stale.Store(true)
			}
			w.ok(p.Set(t.Context(), w.configs[0]))
			if got := w.ask(p.Path("c1"), "10.0.1.3:80"); got != "10.0.1.2" {
				t.Errorf("afterwards the peer sees %q", got)
			}
			if got := w.ask(p.Path("c1"), "[fd01::3]:80"); got != "fd01::2" {
				t.Errorf("afterwards, by IPv6, the peer sees %q", got)
			}
			o := w.observeOverlay(p, "net1")
			if want := w.configs[0].Overlays["net1"]; len(o.Peers) != 1 || o.Peers[0] != want.Peers[0] || !samePrefixes(o.Addresses, want.Addresses) {
				t.Errorf("it is not put back: %s", o)
			}
			other()
		})
	}
}

// lasting opens a connection that stays, and returns what proves that it is still
// there.
func (w *world) lasting(from, to, addr string) func() {
	w.t.Helper()
	w.in(to, func() {
		l, err := net.Listen("tcp", addr)
		w.ok(err)
		w.t.Cleanup(func() { l.Close() })
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				c.Close()
			}
		}()
	})
	var c net.Conn
	w.in(from, func() {
		var err error
		c, err = net.DialTimeout("tcp", addr, 3*time.Second)
		w.ok(err)
	})
	w.t.Cleanup(func() { c.Close() })
	return func() {
		w.t.Helper()
		w.ok(c.SetDeadline(time.Now().Add(3 * time.Second)))
		_, err := c.Write([]byte("hello"))
		w.ok(err)
		_, err = io.ReadFull(c, make([]byte, 5))
		w.ok(err)
	}
}

// Our own changes don't raise the alarm.
func TestOverlayOwnChanges(t *testing.T) {
	w := newPair(t, nil)
	p := w.planes[0]
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	alarms := make(chan struct{}, 100)
	go func() { ended <- p.Watch(ctx, func() { alarms <- struct{}{} }) }()
	damage := func(id string, peer network.Peer) {
		t.Helper()
		h, err := p.overlayHandle(id)
		w.ok(err)
		defer h.Close()
		l, err := h.LinkByName(overlayTunnel)
		w.ok(err)
		w.ok(h.NeighDel(entries(l, peer)[0]))
		<-alarms
	}
	for _, id := range []string{"net1", "net2"} {
		damage(id, w.configs[0].Overlays[id].Peers[0])
	}
	for len(alarms) > 0 { // what was made at first may have raised one
		<-alarms
	}
	for i := range 10 {
		c := w.configs[0].Clone()
		o := *c.Overlays["net1"]
		o.Peers = []network.Peer{{Address: netip.AddrFrom4([4]byte{10, 0, 1, byte(70 + i)}), Node: netip.MustParseAddr("10.99.0.2")}}
		c.Overlays["net1"] = &o
		w.ok(p.Set(t.Context(), c))
	}
	// What is real comes after all of it.
	damage("net1", network.Peer{Address: netip.MustParseAddr("10.0.1.79"), Node: netip.MustParseAddr("10.99.0.2")})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if n := len(alarms); n > 2 { // not one a change
		t.Errorf("%d alarms more than one", n)
	}
}

// Tunnels over IPv6, guarded like others.
func TestTunnelIPv6(t *testing.T) {
	w := newPair(t, nil)
	w.overIPv6()
	w.serve(w.planes[1].Path("c1"), ":80")
	if got := w.ask(w.planes[0].Path("c1"), "10.0.1.3:80"); got != "10.0.1.2" {
		t.Errorf("the peer sees %q", got)
	}
	if g := w.planes[0].guard; !g.known || g.is == nil || !g.is.local.Is6() || len(g.is.sources) != 2 || !w.planes[0].guardIntact() {
		t.Errorf("%+v", g)
	}
	w.ok(w.planes[0].Set(t.Context(), &network.Config{Rules4: true, Rules6: true}))
	c, err := w.planes[0].connect()
	w.ok(err)
	if tables, err := c.ListTables(); err != nil || len(tables) != 0 {
		t.Error(tables, err)
	}
}

// overIPv6 has the nodes reach each other by fd99::1 and fd99::2.
func (p *pair) overIPv6() {
	p.t.Helper()
	for i := range p.planes {
		c := p.configs[i].Clone()
		c.Underlay.Local = netip.MustParseAddr(fmt.Sprint("fd99::", 1+i))
		for id, o := range c.Overlays {
			q := *o
			q.MTU, q.Peers = 1330, []network.Peer{o.Peers[0]}
			q.Peers[0].Node = netip.MustParseAddr(fmt.Sprint("fd99::", 2-i))
			c.Overlays[id] = &q
		}
		p.configs[i] = c
		p.ok(p.planes[i].Set(p.t.Context(), c))
	}
}
