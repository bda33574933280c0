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
	w.in(ns, func() {
		c, err := net.ListenPacket("udp", ":53")
		w.ok(err)
		w.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 16)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(name), from)
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
