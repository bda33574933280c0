package linux

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// cgroup makes a cgroup that programs can be attached to, and moves the test
// into it, as containers are in the node's.
func (w *world) cgroup() string {
	w.t.Helper()
	if w.group != "" {
		return w.group
	}
	root, err := ebpfPlaces{}.cgroup2()
	if err != nil {
		return ""
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	w.ok(err)
	home := root
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			home = filepath.Join(root, path)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("legion-test-%d", os.Getpid()))
	for i := 0; ; i++ { // a test may have two worlds
		w.group = dir + "-" + strconv.Itoa(i)
		if err := os.Mkdir(w.group, 0o755); err == nil {
			break
		} else if !errors.Is(err, os.ErrExist) {
			w.t.Fatal(err)
		}
	}
	pid := []byte(strconv.Itoa(os.Getpid()))
	w.ok(os.WriteFile(filepath.Join(w.group, "cgroup.procs"), pid, 0))
	w.t.Cleanup(func() {
		w.ok(os.WriteFile(filepath.Join(home, "cgroup.procs"), pid, 0))
		w.ok(unix.Rmdir(w.group))
	})
	return w.group
}

const (
	vip4, vip6 = "10.0.9.100", "fd09::100"
	netID      = "net1"
)

// service is an overlay with a client, n servers, and a virtual address of each
// family for them.
func (w *world) service(n int) *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Underlay: network.Underlay{Local: netip.MustParseAddr("10.99.0.1"), Port: 4789}}).Clone()
	c.Overlays[netID] = &network.Overlay{ID: netID, VNI: 4096, MTU: 1350, Addresses: pfx("10.0.9.1/24", "fd09::1/64")}
	c.Sandboxes["client"] = member9("client", 2)
	var b4, b6 []netip.Addr
	for i := range n {
		id := fmt.Sprintf("server%d", i)
		c.Sandboxes[id] = member9(id, 3+i)
		b4, b6 = append(b4, c.Sandboxes[id].Interfaces[0].Addresses[0].Addr()), append(b6, c.Sandboxes[id].Interfaces[0].Addresses[1].Addr())
	}
	lead(c, "", b4...)
	lead(c, "", b6...)
	if n == 0 {
		leadNowhere(c)
	}
	return c
}

func member9(id string, n int) *network.Sandbox {
	return &network.Sandbox{ID: id, Interfaces: []network.Interface{{
		Name: "eth0", HostName: "veth" + id, Overlay: netID, MAC: fmt.Sprintf("02:42:0a:00:09:%02x", n), MTU: 1350,
		Addresses: pfx(fmt.Sprintf("10.0.9.%d/24", n), fmt.Sprintf("fd09::%x/64", n)),
	}}}
}

// lead has the virtual address of the backends' family lead to them.
func lead(c *network.Config, balance network.Balance, backends ...netip.Addr) {
	if len(backends) == 0 {
		return
	}
	vip := netip.MustParseAddr(vip4)
	if backends[0].Is6() {
		vip = netip.MustParseAddr(vip6)
	}
	k := network.BalancerKey{Network: netID, Address: vip}
	c.Balancers[k] = &network.Balancer{BalancerKey: k, Backends: backends, Balance: balance}
}

func leadNowhere(c *network.Config) {
	for _, a := range []string{vip4, vip6} {
		k := network.BalancerKey{Network: netID, Address: netip.MustParseAddr(a)}
		c.Balancers[k] = &network.Balancer{BalancerKey: k}
	}
}

// name serves TCP and UDP: a TCP connection gets the server's name, then every
// line back; a UDP packet is answered with the name.
func (w *world) name(ns, name string, port int) {
	w.t.Helper()
	w.in(ns, func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		w.ok(err)
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		w.ok(err)
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.WriteString(c, name+"\n")
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			b := make([]byte, 1500)
			for {
				_, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(name), from)
			}
		}()
	})
}

func (w *world) names(p *Plane, n int) {
	for i := range n {
		w.name(p.Path(fmt.Sprintf("server%d", i)), fmt.Sprintf("server%d", i), 80)
	}
}

// greeting connects, and returns the server's name.
func (w *world) greeting(ns, addr string) (name string, err error) {
	w.t.Helper()
	w.in(ns, func() {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", addr, 2*time.Second); err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		name, err = bufio.NewReader(c).ReadString('\n')
		name = strings.TrimSpace(name)
	})
	return name, err
}

// spread connects many times, and returns how often each server answered.
func (w *world) spread(ns, addr string, n int) map[string]int {
	w.t.Helper()
	got := map[string]int{}
	for range n {
		name, err := w.greeting(ns, addr)
		if err != nil {
			name = err.Error()
		}
		got[name]++
	}
	return got
}

// eachBalancer runs a test for both drivers.
func eachBalancer(t *testing.T, f func(t *testing.T, w *world, p *Plane)) {
	for _, d := range []string{BalancerEBPF, BalancerNFTables} {
		t.Run(d, func(t *testing.T) {
			w := newWorld(t)
			w.balancer = d
			if d == BalancerEBPF {
				if err := (ebpfPlaces{pins: filepath.Join(w.dir, "bpf"), cgroup: w.cgroup()}).probe(); err != nil {
					t.Skipf("this kernel has no eBPF for cgroups: %v", err)
				}
			}
			f(t, w, w.plane(""))
		})
	}
}

func TestVIP(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		w.ok(p.Set(t.Context(), w.service(3)))
		w.names(p, 3)
		client := p.Path("client")
		for _, to := range []string{vip4 + ":80", "[" + vip6 + "]:80", "[::ffff:" + vip4 + "]:80"} {
			got := w.spread(client, to, 60)
			if len(got) != 3 || got["server0"] == 0 || got["server1"] == 0 || got["server2"] == 0 {
				t.Errorf("%s: connections went to %v", to, got)
			}
		}
		if name, err := w.greeting(p.Path("server1"), vip4+":80"); err != nil || !strings.HasPrefix(name, "server") {
			t.Errorf("a server, by its own service's address: %q, %v", name, err)
		}
		w.in(client, func() { // Go falls back to TCP where the kernel has no MPTCP
			d := net.Dialer{Timeout: 2 * time.Second}
			d.SetMultipathTCP(true)
			c, err := d.Dial("tcp", vip4+":80")
			if err != nil {
				t.Errorf("multipath TCP: %v", err)
				return
			}
			c.Close()
		})
		if _, err := w.greeting(client, vip4+":81"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port on which nobody listens: %v", err)
		}
		if name, err := w.greeting(client, "10.0.9.4:80"); err != nil || name != "server1" {
			t.Errorf("a server by its own address: %q, %v", name, err)
		}
	})
}

// Without backends connections are refused at once, and so is what is sent.
func TestVIPWithoutBackends(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		w.ok(p.Set(t.Context(), w.service(0)))
		for _, to := range []string{vip4 + ":80", "[" + vip6 + "]:80"} {
			_, _ = w.greeting(p.Path("client"), to) // addresses of IPv6 are not of use at once
			start := time.Now()
			if _, err := w.greeting(p.Path("client"), to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v", to, err)
			}
			if d := time.Since(start); d > time.Second {
				t.Errorf("%s: refused after %v", to, d)
			}
			w.in(p.Path("client"), func() {
				c, err := net.Dial("udp", to)
				if err == nil {
					_ = c.SetDeadline(time.Now().Add(2 * time.Second))
					_, _ = c.Write([]byte("x"))
					_, err = c.Read(make([]byte, 10))
					c.Close()
				}
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("udp %s: %v", to, err)
				}
			})
		}
	})
}

// A connection goes on when its backend takes no new ones.
func TestVIPKeepsConnections(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(2)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 2)
		client := p.Path("client")
		type held struct {
			net.Conn
			r *bufio.Reader
		}
		var conns []held
		w.in(client, func() {
			for range 10 {
				conn, err := net.Dial("tcp", vip4+":80")
				w.ok(err)
				h := held{conn, bufio.NewReader(conn)}
				_, err = h.r.ReadString('\n')
				w.ok(err)
				conns = append(conns, h)
			}
		})
		less := c.Clone()
		lead(less, "", netip.MustParseAddr("10.0.9.4"))
		w.ok(p.Set(t.Context(), less))
		if got := w.spread(client, vip4+":80", 20); got["server1"] != 20 {
			t.Errorf("after one left, connections went to %v", got)
		}
		none := less.Clone()
		delete(none.Balancers, network.BalancerKey{Network: netID, Address: netip.MustParseAddr(vip4)})
		for i, next := range []*network.Config{less, none} {
			w.ok(p.Set(t.Context(), next))
			for _, h := range conns {
				_ = h.SetDeadline(time.Now().Add(2 * time.Second))
				_, err := io.WriteString(h, "still there\n")
				w.ok(err)
				if s, err := h.r.ReadString('\n'); err != nil || s != "still there\n" {
					t.Fatalf("a connection that was held, step %d: %q, %v", i, s, err)
				}
			}
		}
		for _, h := range conns {
			if got := h.RemoteAddr().String(); got != vip4+":80" {
				t.Errorf("connected to %s", got)
			}
			h.Close()
		}
	})
}

// exchange sends to a virtual address and returns who answered, and from where.
func exchange(c net.PacketConn, to string) (name, from string, err error) {
	a, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return "", "", err
	}
	if _, err := c.WriteTo([]byte("who"), a); err != nil {
		return "", "", err
	}
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 100)
	n, addr, err := c.ReadFrom(b)
	if err != nil {
		return "", "", err
	}
	return string(b[:n]), addr.String(), nil
}

func TestVIPUDP(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(3)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 3)
		for _, s := range []struct{ network, to string }{
			{"udp4", vip4 + ":80"}, {"udp6", "[" + vip6 + "]:80"}, {"udp", vip4 + ":80"}, // the last by a socket of IPv6
		} {
			seen := map[string]bool{}
			w.in(p.Path("client"), func() {
				for range 30 {
					u, err := net.ListenPacket(s.network, ":0")
					w.ok(err)
					first := ""
					for range 3 { // one socket stays with one backend
						name, from, err := exchange(u, s.to)
						if err != nil || from != s.to || first != "" && name != first {
							t.Errorf("%s: %q (before: %q) from %s, %v", s.network, name, first, from, err)
						}
						first = name
					}
					seen[first] = true
					u.Close()
				}
			})
			if len(seen) != 3 {
				t.Errorf("%s: only %v answered", s.network, seen)
			}
		}
	})
}

// A socket that goes on sending gets another backend when its own leaves; one
// that is connected shows the virtual address.
func TestVIPUDPMoves(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		c := w.service(2)
		w.ok(p.Set(t.Context(), c))
		w.names(p, 2)
		var u net.PacketConn
		var k net.Conn
		w.in(p.Path("client"), func() {
			var err error
			u, err = net.ListenPacket("udp4", ":0")
			w.ok(err)
			k, err = net.Dial("udp4", vip4+":80")
			w.ok(err)
		})
		defer u.Close()
		defer k.Close()
		name, _, err := exchange(u, vip4+":80")
		w.ok(err)
		other := map[string]int{"server0": 1, "server1": 0}[name]
		less := c.Clone()
		lead(less, "", c.Sandboxes[fmt.Sprintf("server%d", other)].Interfaces[0].Addresses[0].Addr())
		w.ok(p.Set(t.Context(), less))
		name, from, err := exchange(u, vip4+":80")
		if err != nil || name != fmt.Sprintf("server%d", other) || from != vip4+":80" {
			t.Errorf("after its backend left: %q from %s, %v", name, from, err)
		}
		if got := k.RemoteAddr().String(); got != vip4+":80" {
			t.Errorf("connected to %s", got)
		}
		_, err = k.Write([]byte("who"))
		w.ok(err)
		_ = k.SetReadDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 100)
		if _, from, err := k.(*net.UDPConn).ReadFrom(b); err != nil || from.String() != vip4+":80" {
			t.Errorf("a connected socket, after a backend left: from %v, %v", from, err)
		}
	})
}

// Ping is answered, and what is no connection of a container is refused, on the
// node itself.
func TestVIPPing(t *testing.T) {
	eachBalancer(t, func(t *testing.T, w *world, p *Plane) {
		w.ok(p.Set(t.Context(), w.service(1)))
		for _, a := range []string{vip4, vip6} {
			if err := w.ping(p.Path("client"), a); err != nil {
				t.Errorf("ping %s: %v", a, err)
			}
		}
		less := w.service(1)
		clear(less.Balancers)
		w.ok(p.Set(t.Context(), less))
		if err := w.ping(p.Path("client"), vip4); err == nil {
			t.Errorf("ping %s answers when there is no such service", vip4)
		}
	})
}

// ping sends one echo request.
func (w *world) ping(ns, to string) (err error) {
	w.t.Helper()
	w.in(ns, func() {
		a := netip.MustParseAddr(to)
		family, proto, kind := unix.AF_INET, unix.IPPROTO_ICMP, byte(8)
		var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: netip.MustParseAddr(vip4).As4()}
		if a.Is6() {
			family, proto, kind = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128
			sa = &unix.SockaddrInet6{Addr: a.As16()}
		}
		fd, e := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
		w.ok(e)
		defer unix.Close(fd)
		w.ok(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}))
		body := []byte("legion")
		if err = unix.Sendto(fd, append([]byte{kind, 0, 0, 0, 0, 0, 0, 1}, body...), 0, sa); err != nil {
			return
		}
		b := make([]byte, 100)
		n, _, e := unix.Recvfrom(fd, b, 0)
		if err = e; err == nil && !bytes.HasSuffix(b[:n], body) {
			err = fmt.Errorf("answer %x", b[:n])
		}
	})
	return err
}
