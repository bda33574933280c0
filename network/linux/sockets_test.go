package linux

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
)

// A UDP client that never stops sending reaches whoever has the port now.
func TestUDPMoves(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	k := network.PortKey{Protocol: network.UDP, Host: netip.MustParseAddrPort("0.0.0.0:5353")}
	lead := func(to string) {
		c = c.Clone()
		c.Ports[k] = &network.Port{PortKey: k, Target: netip.MustParseAddrPort(to + ":53"), Sandbox: "a"}
		w.ok(p.Set(t.Context(), c))
	}
	lead("172.17.0.2")
	w.echo(p.Path("a"), "a")
	w.echo(p.Path("b"), "b")
	var client net.Conn
	w.in(w.outside, func() {
		var err error
		client, err = net.Dial("udp", "10.99.0.1:5353")
		w.ok(err)
	})
	defer client.Close()
	ask := func() string {
		buf := make([]byte, 16)
		_, _ = client.Write([]byte("?"))
		_ = client.SetReadDeadline(time.Now().Add(3 * time.Second))
		n, err := client.Read(buf)
		if err != nil {
			return err.Error()
		}
		return string(buf[:n])
	}
	if got := ask(); got != "a" {
		t.Errorf("%q answers, not a", got)
	}
	lead("172.17.0.3")
	if got := ask(); got != "b" {
		t.Errorf("%q answers, not b", got)
	}
}

// echo answers every datagram to port 53 with a name.
func (w *world) echo(ns, name string) {
	w.t.Helper()
	w.answer(ns, func(netip.AddrPort) string { return name })
}

// answer answers every datagram to port 53 with what says is to be said to its sender.
func (w *world) answer(ns string, says func(from netip.AddrPort) string) {
	w.t.Helper()
	w.in(ns, func() {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: 53})
		w.ok(err)
		w.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 16)
			for {
				_, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteToUDPAddrPort([]byte(says(from)), from)
			}
		}()
	})
}

// Without rules the sockets do it all, TCP and UDP.
func TestNoRules(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	c.Rules4, c.Rules6 = false, false
	k := network.PortKey{Protocol: network.UDP, Host: netip.MustParseAddrPort("0.0.0.0:5353")}
	c.Ports[k] = &network.Port{PortKey: k, Target: netip.MustParseAddrPort("172.17.0.2:53"), Sandbox: "a"}
	w.ok(p.Set(t.Context(), c))
	w.serve(p.Path("a"), ":80")
	w.echo(p.Path("a"), "a")
	if got := w.ask(w.outside, "10.99.0.1:8080"); got != "172.17.0.1" {
		t.Errorf("TCP: %q", got)
	}
	w.in(w.outside, func() {
		client, err := net.Dial("udp", "10.99.0.1:5353")
		w.ok(err)
		defer client.Close()
		_, err = client.Write([]byte("?"))
		w.ok(err)
		w.ok(client.SetReadDeadline(time.Now().Add(3 * time.Second)))
		buf := make([]byte, 16)
		if n, err := client.Read(buf); err != nil || string(buf[:n]) != "a" {
			t.Errorf("UDP: %q, %v", buf[:n], err)
		}
	})
}

// Answers to datagrams come from the address that was asked, whichever leads to the
// client; and a port has room for new clients, however many there were.
func TestRelayedDatagrams(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	c.Rules4, c.Rules6 = false, false
	for _, k := range []string{"0.0.0.0:5353", "[::]:5353"} {
		port := published("a", k, "172.17.0.2:53")
		port.Protocol = network.UDP
		c.Ports[port.PortKey] = port
	}
	w.ok(p.Set(t.Context(), c))
	w.mirror(p.Path("a"))
	for _, to := range []string{"10.99.0.1:5353", "[fd99::1]:5353", "172.17.0.1:5353"} {
		if got := w.asked(p.Path("b"), to); got != "172.17.0.1" {
			t.Errorf("%s: %s", to, got)
		}
	}
	if got := w.asked(w.host, "127.0.0.1:5353"); got != "172.17.0.1" {
		t.Errorf("by loopback: %s", got)
	}
	buf := make([]byte, 64)
	var first net.Conn
	for i := range maxRelayed + 20 {
		var client net.Conn
		w.in(w.outside, func() {
			var err error
			client, err = net.Dial("udp", "10.99.0.1:5353")
			w.ok(err)
		})
		defer client.Close()
		if i == 0 {
			first = client
		}
		for _, conn := range []net.Conn{client, first} { // one goes on all the time
			_, err := conn.Write([]byte("?"))
			w.ok(err)
			w.ok(conn.SetReadDeadline(time.Now().Add(3 * time.Second)))
			if _, err := conn.Read(buf); err != nil {
				t.Fatalf("client %d: %v", i, err)
			}
		}
	}
}

// With no relay a held port refuses connections, and is held all the same.
func TestHeldOnly(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	c.UserProxy = false
	w.ok(p.Set(t.Context(), c))
	if got := w.ask(w.host, "[::1]:8080"); got != "error" {
		t.Errorf("[::1] answers %q", got)
	}
	w.in(w.host, func() {
		if l, err := net.Listen("tcp4", "0.0.0.0:8080"); err == nil {
			l.Close()
			t.Error("a process took a published port")
		}
	})
}

// Sandboxes come and go without leaving threads or descriptors behind.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	none := c.Clone()
	clear(none.Sandboxes)
	clear(none.Ports)
	round := func() {
		w.ok(p.Set(t.Context(), c))
		w.ok(p.Set(t.Context(), none))
		renamed := c.Clone()
		for id, s := range c.Sandboxes {
			n := *s
			f := s.Interfaces[0]
			f.HostName += "x"
			n.Interfaces = []network.Interface{f}
			renamed.Sandboxes[id] = &n
		}
		c = renamed
		if len(c.Sandboxes["a"].Interfaces[0].HostName) > 12 {
			c = base()
		}
	}
	for range 5 {
		round()
	}
	goroutines, threads, files := runtime.NumGoroutine(), count(w, "/proc/self/task"), count(w, "/proc/self/fd")
	for range 30 {
		round()
	}
	if g := runtime.NumGoroutine(); g > goroutines+2 {
		t.Errorf("goroutines: %d, then %d", goroutines, g)
	}
	if n := count(w, "/proc/self/task"); n > threads+4 {
		t.Errorf("threads: %d, then %d", threads, n)
	}
	if n := count(w, "/proc/self/fd"); n > files+2 {
		t.Errorf("files: %d, then %d", files, n)
	}
}

// A set that can't be done says which part, and does the rest.
func TestParts(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	c.Sandboxes["b"].Interfaces[0].Sysctls = []string{"net.ipv4.conf.IFNAME.nonsense=1"}
	err := p.Set(t.Context(), c)
	var se *network.SetError
	if !errors.As(err, &se) || len(se.Items) != 1 || se.Items[network.SandboxItem("b")] == nil {
		t.Fatalf("got %v", err)
	}
	if bound(p.Path("b")) || !bound(p.Path("a")) {
		t.Error("the failed one is there, or the other isn't")
	}
}

// asked returns what the server of datagrams at addr sees as the client's address. The
// client takes answers from there alone.
func (w *world) asked(ns, addr string) (seen string) {
	w.t.Helper()
	seen = "error"
	w.in(ns, func() {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return
		}
		defer c.Close()
		buf := make([]byte, 64)
		for range 3 { // they may be lost
			if _, err := c.Write([]byte("?")); err != nil {
				continue
			}
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := c.Read(buf); err == nil {
				seen = string(buf[:n])
				return
			}
		}
	})
	return seen
}

// mirror answers every datagram to port 53 with the address that it comes from.
func (w *world) mirror(ns string) {
	w.t.Helper()
	w.answer(ns, func(from netip.AddrPort) string { return from.Addr().Unmap().String() })
}

// Datagrams of containers that are kept apart reach ports that others publish, and
// their own, also where frames in bridges pass the packet filter.
func TestDatagramsOfIsolatedContainers(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	apart := *c.Bridges["legion0"]
	apart.Isolated = true
	c.Bridges["legion0"] = &apart
	for _, k := range []string{"0.0.0.0:5353", "[::]:5353"} {
		port := published("a", k, "172.17.0.2:53")
		if port.Protocol = network.UDP; port.Host.Addr().Is6() {
			port.Target = netip.MustParseAddrPort("[fd17::2]:53")
		}
		c.Ports[port.PortKey] = port
	}
	w.ok(p.Set(t.Context(), c))
	a, b := p.Path("a"), p.Path("b")
	w.mirror(a)
	// Clients that go on: what filters frames comes and goes beneath them.
	same := map[string]net.Conn{}
	for _, to := range []string{"10.99.0.1:5353", "[fd99::1]:5353"} {
		w.in(b, func() {
			conn, err := net.Dial("udp", to)
			w.ok(err)
			t.Cleanup(func() { conn.Close() })
			same[to] = conn
		})
	}
	for _, bridgeFilter := range []string{"0", "1", "0"} {
		w.in(w.host, func() {
			if err := writeSysctl("/proc/sys/net/bridge/bridge-nf-call-iptables", bridgeFilter); err != nil {
				t.Skip("this kernel shows frames in bridges to no rules: ", err)
			}
			w.ok(writeSysctl("/proc/sys/net/bridge/bridge-nf-call-ip6tables", bridgeFilter))
		})
		w.ok(p.Set(t.Context(), c)) // there is one each minute
		for _, c := range []struct{ what, from, to, seen string }{
			{"container to container", b, "172.17.0.2:53", "error"},
			{"published, from the other container", b, "10.99.0.1:5353", "172.17.0.1"},
			{"published, from the other container, IPv6", b, "[fd99::1]:5353", "fd17::1"},
			{"published, from the other container by the gateway", b, "172.17.0.1:5353", "172.17.0.1"},
			{"published, from the container itself", a, "10.99.0.1:5353", "172.17.0.1"},
			{"published, from outside, client kept", w.outside, "10.99.0.1:5353", "10.99.0.2"},
			{"published, from the host", w.host, "10.99.0.1:5353", "10.99.0.1"},
		} {
			if got := w.asked(c.from, c.to); got != c.seen {
				t.Errorf("%s, bridge-nf %s: the server saw %q, not %q", c.what, bridgeFilter, got, c.seen)
			}
		}
		for to, conn := range same {
			_, err := conn.Write([]byte("?"))
			w.ok(err)
			_ = conn.SetReadDeadline(time.Now().Add(3 * time.Second))
			if n, err := conn.Read(make([]byte, 64)); err != nil || n == 0 {
				t.Errorf("bridge-nf %s: %s does not answer one that goes on: %v", bridgeFilter, to, err)
			}
		}
	}
}
