package linux

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
)

// Everything that can be said of a sandbox is what arrives at it.

func pfx(s ...string) []netip.Prefix {
	var l []netip.Prefix
	for _, p := range s {
		l = append(l, netip.MustParsePrefix(p))
	}
	return l
}

func box(id string, n int, bridge string) *network.Sandbox {
	return &network.Sandbox{
		ID: id,
		Interfaces: []network.Interface{{
			Name: "eth0", HostName: "veth" + id, Bridge: bridge, MAC: fmt.Sprintf("02:42:ac:11:00:%02x", n), MTU: 1400,
			Addresses: pfx(fmt.Sprintf("172.17.0.%d/16", n), fmt.Sprintf("fd17::%x/64", n)),
		}},
		Gateway4: netip.MustParseAddr("172.17.0.1"), Gateway6: netip.MustParseAddr("fd17::1"),
	}
}

func published(id, key, target string) *network.Port {
	return &network.Port{PortKey: network.PortKey{Protocol: network.TCP, Host: netip.MustParseAddrPort(key)}, Target: netip.MustParseAddrPort(target), Sandbox: id}
}

// base is two containers on a bridge; the first's port 80 is published as 8080.
func base() *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true, UserProxy: true}).Clone()
	c.Bridges["legion0"] = &network.Bridge{Device: "legion0", Addresses: pfx("172.17.0.1/16", "fd17::1/64"), MTU: 1400, Masquerade: true}
	c.Sandboxes["a"], c.Sandboxes["b"] = box("a", 2, "legion0"), box("b", 3, "legion0")
	for _, p := range []*network.Port{
		published("a", "0.0.0.0:8080", "172.17.0.2:80"),
		published("a", "[::]:8080", "[fd17::2]:80"),
		published("b", "[::]:8081", "172.17.0.3:80"), // IPv6 in front, IPv4 behind
		published("b", "127.0.0.1:8082", "172.17.0.3:80"),
		published("b", "10.99.0.1:8083", "172.17.0.3:80"),
	} {
		c.Ports[p.PortKey] = p
	}
	return c
}

// serve answers each connection with the address that it comes from.
func (w *world) serve(ns, addr string) {
	w.t.Helper()
	w.in(ns, func() {
		l, err := net.Listen("tcp", addr)
		w.ok(err)
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = io.WriteString(c, host)
				c.Close()
			}
		}()
	})
}

// ask returns what the server at addr sees as the client's address.
func (w *world) ask(ns, addr string) (seen string) {
	w.t.Helper()
	w.in(ns, func() {
		c, err := net.DialTimeout("tcp", addr, 3*time.Second)
		if err != nil {
			seen = "error"
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		b, err := io.ReadAll(c)
		if seen = string(b); err != nil {
			seen = "error"
		}
	})
	return seen
}

func TestTraffic(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	w.ok(p.Set(t.Context(), base()))
	a, b := p.Path("a"), p.Path("b")
	w.serve(a, ":80")
	w.serve(b, ":80")
	w.serve(w.outside, ":9000")
	for _, c := range []struct{ what, from, to, seen string }{
		{"container to container", b, "172.17.0.2:80", "172.17.0.3"},
		{"container to container, IPv6", b, "[fd17::2]:80", "fd17::3"},
		{"host to container", w.host, "172.17.0.2:80", "172.17.0.1"},
		{"container to the world, masqueraded", a, "10.99.0.2:9000", "10.99.0.1"},
		{"container to the world, IPv6", a, "[fd99::2]:9000", "fd99::1"},
		{"published, from outside, client kept", w.outside, "10.99.0.1:8080", "10.99.0.2"},
		{"published, from outside, IPv6", w.outside, "[fd99::1]:8080", "fd99::2"},
		{"published, from the host", w.host, "10.99.0.1:8080", "10.99.0.1"},
		{"published, loopback", w.host, "127.0.0.1:8080", "172.17.0.1"},
		{"published, loopback IPv6", w.host, "[::1]:8080", "fd17::1"},
		{"published, from the other container", b, "10.99.0.1:8080", "172.17.0.1"},
		{"published, from the container itself", a, "10.99.0.1:8080", "172.17.0.1"},
		{"published, from itself by the gateway", a, "172.17.0.1:8080", "172.17.0.1"},
		{"published, from itself, IPv6", a, "[fd99::1]:8080", "fd17::1"},
		{"IPv6 to an IPv4 container", w.outside, "[fd99::1]:8081", "172.17.0.1"},
		{"on loopback only", w.host, "127.0.0.1:8082", "172.17.0.1"},
		{"on loopback only, from outside", w.outside, "10.99.0.1:8082", "error"},
		{"on one address", w.outside, "10.99.0.1:8083", "10.99.0.2"},
		{"on one address, by another", w.host, "172.17.0.1:8083", "error"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if got := w.ask(c.from, c.to); got != c.seen {
				t.Errorf("the server saw %q, not %q", got, c.seen)
			}
		})
	}
}

// Containers that are kept apart reach each other's published ports, and their own.
func TestTrafficOfIsolatedContainers(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	apart := *c.Bridges["legion0"]
	apart.Isolated = true
	c.Bridges["legion0"] = &apart
	for _, proxy := range []bool{false, true} { // the rules follow
		c = c.Clone()
		c.UserProxy = proxy
		w.ok(p.Set(t.Context(), c))
	}
	a, b := p.Path("a"), p.Path("b")
	w.serve(a, ":80")
	w.serve(b, ":80")
	for _, bridgeFilter := range []string{"0", "1"} {
		w.in(w.host, func() {
			if err := writeSysctl("/proc/sys/net/bridge/bridge-nf-call-iptables", bridgeFilter); err != nil {
				t.Skip("this kernel shows frames in bridges to no rules: ", err)
			}
			w.ok(writeSysctl("/proc/sys/net/bridge/bridge-nf-call-ip6tables", bridgeFilter))
		})
		for _, c := range []struct{ what, from, to, seen string }{
			{"container to container", b, "172.17.0.2:80", "error"},
			{"published, from the other container", b, "10.99.0.1:8080", "172.17.0.1"},
			{"published, from the other container, IPv6", b, "[fd99::1]:8080", "fd17::1"},
			{"published, from the container itself", a, "10.99.0.1:8080", "172.17.0.1"},
			{"published, from itself by the gateway", a, "172.17.0.1:8080", "172.17.0.1"},
			{"published, from outside, client kept", w.outside, "10.99.0.1:8080", "10.99.0.2"},
		} {
			if got := w.ask(c.from, c.to); got != c.seen {
				t.Errorf("%s, bridge-nf %s: the server saw %q, not %q", c.what, bridgeFilter, got, c.seen)
			}
		}
	}
}
