package linux

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// named is a config of two sandboxes in one network, with names.
func named() *network.Config {
	c := networktest.Sample(2)
	web := netip.MustParseAddr("172.17.0.2")
	c.Zones = map[string]*network.Zone{"n": {
		ID: "n", Name: "backend", Names: map[string][]netip.Addr{"web": {web}, "both": {web, netip.MustParseAddr("fd17::2")}},
		Owners: map[netip.Addr]string{web: "web.backend"},
	}}
	for id, s := range c.Sandboxes {
		n := *s
		n.Resolver = &network.Resolver{Zones: []string{"n"}}
		c.Sandboxes[id] = &n
	}
	return c
}

// lookup asks the resolver at 127.0.0.11 with Go's resolver.
func (w *world) lookup(p *Plane, sandbox, proto, kind, name string) (l []string, err error) {
	w.t.Helper()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if proto != "" {
			network = proto
		}
		var c net.Conn
		err := p.inSandbox(p.Path(sandbox), func() (err error) {
			c, err = (&net.Dialer{}).DialContext(ctx, network, "127.0.0.11:53")
			return err
		})
		return c, err
	}}
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	if kind == "ptr" {
		return r.LookupAddr(ctx, name)
	}
	addrs, err := r.LookupNetIP(ctx, kind, name)
	for _, a := range addrs {
		l = append(l, a.Unmap().String())
	}
	slices.Sort(l)
	return l, err
}

func (w *world) expectNames(p *Plane, sandbox, proto, kind, name string, want ...string) {
	w.t.Helper()
	got, err := w.lookup(p, sandbox, proto, kind, name)
	if err != nil && len(want) > 0 {
		w.t.Errorf("%s %s %s in %s: %v", proto, kind, name, sandbox, err)
	} else if !slices.Equal(got, want) {
		w.t.Errorf("%s %s %s in %s: %v, want %v", proto, kind, name, sandbox, got, want)
	}
}

func TestResolver(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := named()
	w.ok(p.Set(t.Context(), c))
	for _, sandbox := range []string{"s0-0", "s1-0", "o-0"} {
		for _, proto := range []string{"udp", "tcp"} {
			w.expectNames(p, sandbox, proto, "ip4", "web.", "172.17.0.2")
			w.expectNames(p, sandbox, proto, "ip4", "WEB.Backend.", "172.17.0.2")
			w.expectNames(p, sandbox, proto, "ip", "both.", "172.17.0.2", "fd17::2")
			w.expectNames(p, sandbox, proto, "ip6", "web.")
			w.expectNames(p, sandbox, proto, "ip", "other.backend.")
			w.expectNames(p, sandbox, proto, "ptr", "172.17.0.2", "web.backend.")
		}
	}
	// Also in a sandbox without any address of IPv4, and without any at all.
	bare := c.Clone()
	six := *bare.Sandboxes["s1-0"]
	f := six.Interfaces[0]
	f.Addresses, f.HostName = f.Addresses[1:], "veth6"
	six.Interfaces, six.Gateway4 = []network.Interface{f}, netip.Addr{}
	bare.Sandboxes["s1-0"] = &six
	bare.Sandboxes["alone"] = &network.Sandbox{ID: "alone", Resolver: six.Resolver}
	w.ok(p.Set(t.Context(), bare))
	for _, sandbox := range []string{"s1-0", "alone"} {
		w.expectNames(p, sandbox, "udp", "ip", "both.", "172.17.0.2", "fd17::2")
		w.expectNames(p, sandbox, "tcp", "ip", "both.", "172.17.0.2", "fd17::2")
	}
	// A change is there when Set has returned.
	for i := range 20 {
		n := c.Clone()
		a := netip.AddrFrom4([4]byte{10, 1, 1, byte(i)})
		n.Zones["n"] = &network.Zone{ID: "n", Name: "backend", Names: map[string][]netip.Addr{"web": {a}}}
		w.ok(p.Set(t.Context(), n))
		w.expectNames(p, "s0-0", "udp", "ip4", "web.", a.String())
	}
	without := c.Clone()
	s := *without.Sandboxes["s0-0"]
	s.Resolver = nil
	without.Sandboxes["s0-0"] = &s
	w.ok(p.Set(t.Context(), without))
	if _, err := w.lookup(p, "s0-0", "tcp", "ip4", "web."); err == nil {
		t.Error("a resolver answers that is not wanted")
	}
	w.expectNames(p, "s0-1", "udp", "ip4", "web.", "172.17.0.2")
}

// TestResolverLeavesPort53 : a container's own server takes it on any other
// address, and on all.
func TestResolverLeavesPort53(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	w.ok(p.Set(t.Context(), named()))
	w.in(p.Path("s0-0"), func() {
		u, err := net.ListenPacket("udp", ":53")
		w.ok(err)
		defer u.Close()
		l, err := net.Listen("tcp", ":53")
		w.ok(err)
		defer l.Close()
		c, err := net.Dial("udp", "127.0.0.1:53")
		w.ok(err)
		defer c.Close()
		_, err = c.Write([]byte("hello"))
		w.ok(err)
		buf := make([]byte, 10)
		w.ok(u.SetReadDeadline(time.Now().Add(5 * time.Second)))
		n, _, err := u.ReadFrom(buf)
		w.ok(err)
		if string(buf[:n]) != "hello" {
			t.Errorf("the container's own server got %q", buf[:n])
		}
	})
	w.expectNames(p, "s0-0", "udp", "ip4", "web.", "172.17.0.2")
	w.expectNames(p, "s0-0", "tcp", "ip4", "web.", "172.17.0.2")
}

// TestResolverReopens: a keeper that is killed, with its daemon, leaves rules that lead
// nowhere; the next one serves the namespaces that are there.
func TestResolverReopens(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := named()
	w.ok(p.Set(t.Context(), c))
	before := inode(p.Path("s0-0"))
	w.killKeeper(p)
	w.kill(p)
	p = w.plane("")
	w.ok(p.Set(t.Context(), c))
	if inode(p.Path("s0-0")) != before {
		t.Error("the sandbox was made anew")
	}
	for id := range c.Sandboxes {
		w.expectNames(p, id, "udp", "ip4", "web.", "172.17.0.2")
		w.expectNames(p, id, "tcp", "ip4", "web.", "172.17.0.2")
	}
	// A namespace that is lost and made anew has a resolver, too.
	w.ok(unbindNamespace(p.Path("s0-0")))
	p.stale.Store(true)
	w.ok(p.Set(t.Context(), c))
	w.expectNames(p, "s0-0", "udp", "ip4", "web.", "172.17.0.2")
}

// TestResolverResumes: names are answered while the daemon is away, by the next one
// before its first Set, and if the keeper is gone, too. What is open stays.
func TestResolverResumes(t *testing.T) {
	for _, gone := range []bool{false, true} {
		t.Run(fmt.Sprint("keeper gone ", gone), func(t *testing.T) {
			w := newWorld(t)
			p := w.plane("")
			c := named()
			w.ok(p.Set(t.Context(), c))
			if gone {
				w.killKeeper(p)
			}
			w.kill(p)
			ports := func() map[string]string {
				m := map[string]string{}
				for id := range c.Sandboxes {
					m[id] = w.bound(p.Path(id))
				}
				return m
			}
			before := ports()
			if !gone {
				w.expectNames(p, "s0-0", "udp", "ip4", "web.", "172.17.0.2")
			}
			p = w.plane("")
			lost := *c.Sandboxes["s0-0"]
			lost.ID = "lost" // with the host's last boot
			more := c.Clone()
			more.Sandboxes[lost.ID] = &lost
			p.Resume(more)
			for id := range c.Sandboxes {
				w.expectNames(p, id, "udp", "ip4", "web.", "172.17.0.2")
				w.expectNames(p, id, "tcp", "ip4", "web.", "172.17.0.2")
			}
			resumed := ports()
			if !gone && !maps.Equal(resumed, before) {
				t.Errorf("sockets %v, were %v", resumed, before)
			}
			ended := c.Clone() // meanwhile
			delete(ended.Sandboxes, "s0-1")
			w.ok(p.Set(t.Context(), ended))
			w.expectNames(p, "s0-0", "udp", "ip4", "web.", "172.17.0.2")
			if w.bound(p.Path("s0-0")) != resumed["s0-0"] {
				t.Error("sockets were opened again")
			}
			for _, id := range []string{"s0-1", lost.ID} {
				if _, there := p.keeper.Resolver(id); there {
					t.Errorf("a resolver of %s is held", id)
				}
			}
		})
	}
}

// bound lists the UDP sockets in a namespace, by address and inode.
func (w *world) bound(path string) string {
	w.t.Helper()
	var l []string
	w.in(path, func() {
		b, err := os.ReadFile("/proc/thread-self/net/udp")
		w.ok(err)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 9 && f[0] != "sl" {
				l = append(l, f[1]+" "+f[9])
			}
		}
	})
	slices.Sort(l)
	return strings.Join(l, ", ")
}

// TestResolverWithoutRules: a kernel that can't lead port 53 elsewhere has it
// served all the same.
func TestResolverWithoutRules(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	p.commit = func(*transaction) error { return unix.EOPNOTSUPP }
	w.ok(p.Set(t.Context(), named()))
	w.expectNames(p, "s0-0", "udp", "ip4", "web.", "172.17.0.2")
	w.expectNames(p, "s0-0", "tcp", "ip4", "web.", "172.17.0.2")
	w.in(p.Path("s0-0"), func() {
		c, err := net.ListenPacket("udp", "127.0.0.11:53")
		if err == nil {
			c.Close()
			t.Error("port 53 is not taken")
		}
	})
}

// keptSockets are those for the next Set: as many as were needed at once so far.
func (p *Plane) keptSockets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.handles)
	for _, l := range append([]*lender{&p.lent}, p.lenders()...) {
		l.mu.Lock()
		n += len(l.free)
		l.mu.Unlock()
	}
	return n
}

// lenders are those of overlays. Callers hold mu.
func (p *Plane) lenders() (l []*lender) {
	for _, w := range p.watches {
		l = append(l, &w.lent)
	}
	return l
}

// TestResolverLeavesNothing: files, goroutines and namespaces go.
func TestResolverLeavesNothing(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := named()
	empty := c.Clone()
	clear(empty.Sandboxes)
	clear(empty.Ports)
	w.ok(p.Set(t.Context(), empty))
	files, routines := 0, 0
	for i := range 3 {
		w.ok(p.Set(t.Context(), c))
		w.expectNames(p, "s0-0", "tcp", "ip4", "web.", "172.17.0.2")
		w.ok(p.Set(t.Context(), empty))
		runtime.GC()
		if n := count(w, "/proc/self/fd") - p.keptSockets(); i == 0 {
			files, routines = n, runtime.NumGoroutine()
		} else if n > files+2 || runtime.NumGoroutine() > routines+2 {
			t.Errorf("%d files and %d goroutines, after %d and %d", n, runtime.NumGoroutine(), files, routines)
		}
	}
}

// server answers every question on an address of a namespace: with an address,
// cut short if it comes as a datagram for a name that begins with "big".
func (w *world) server(path, addr string, answer netip.Addr) {
	w.t.Helper()
	var u net.PacketConn
	var l net.Listener
	w.in(path, func() {
		var err error
		u, err = net.ListenPacket("udp", addr)
		w.ok(err)
		l, err = net.Listen("tcp", addr)
		w.ok(err)
	})
	w.t.Cleanup(func() { u.Close(); l.Close() })
	reply := func(m []byte, cut bool) []byte {
		var q dnsmessage.Message
		if q.Unpack(m) != nil {
			return nil
		}
		q.Response, q.RecursionAvailable = true, true
		q.Additionals = nil
		name := q.Questions[0].Name
		if q.Truncated = cut && name.String()[:3] == "big"; !q.Truncated && q.Questions[0].Type == dnsmessage.TypeA {
			q.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 5}, Body: &dnsmessage.AResource{A: answer.As4()}}}
		}
		b, _ := q.Pack()
		return b
	}
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(reply(buf[:n], true), from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 2000)
			n, _ := c.Read(buf)
			if n > 2 {
				b := reply(buf[2:n], false)
				_, _ = c.Write(append([]byte{byte(len(b) >> 8), byte(len(b))}, b...))
			}
			c.Close()
		}
	}()
}

// TestResolverForwards: what is not known is asked from the host, where loopback
// is the host's, or from the sandbox.
func TestResolverForwards(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := named()
	loop, outside, own := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	w.server(w.host, "127.0.0.53:53", loop)
	w.server(w.outside, "10.99.0.2:53", outside)
	set := func(id string, inside bool, servers ...string) {
		s := *c.Sandboxes[id]
		s.Resolver = &network.Resolver{Zones: []string{"n"}, Inside: inside}
		for _, a := range servers {
			s.Resolver.Servers = append(s.Resolver.Servers, netip.MustParseAddrPort(a))
		}
		c.Sandboxes[id] = &s
	}
	set("s0-0", false, "127.0.0.53:53", "10.99.0.2:53")
	set("s1-0", false, "127.0.0.9:53", "10.99.0.2:53") // the first is not there
	set("o-0", false, "10.99.0.2:53")                  // which has no way out itself
	set("s0-1", true, "172.17.0.2:53")
	set("s1-1", true, "127.0.0.1:5353")
	w.ok(p.Set(t.Context(), c))
	w.server(p.Path("s0-0"), "172.17.0.2:53", own)
	w.server(p.Path("s1-1"), "127.0.0.1:5353", own)
	for id, want := range map[string]netip.Addr{"s0-0": loop, "s1-0": outside, "o-0": outside, "s0-1": own, "s1-1": own} {
		for _, proto := range []string{"udp", "tcp", ""} {
			w.expectNames(p, id, proto, "ip4", "example.com.", want.String())
		}
		w.expectNames(p, id, "", "ip4", "big.example.com.", want.String()) // goes on by TCP
		w.expectNames(p, id, "udp", "ip4", "web.", "172.17.0.2")
		w.expectNames(p, id, "udp", "ip4", "none.backend.")
	}
	var dnsErr *net.DNSError
	if _, err := w.lookup(p, "o-1", "", "ip4", "example.com."); !errors.As(err, &dnsErr) || !dnsErr.IsNotFound {
		t.Errorf("without servers: %v", err)
	}
}

// resolve asks a sandbox's resolver one question, by itself.
func (w *world) resolve(p *Plane, sandbox, name string, v6 bool) networktest.Answer {
	w.t.Helper()
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	if v6 {
		q.Questions[0].Type = dnsmessage.TypeAAAA
	}
	m, err := q.Pack()
	w.ok(err)
	var c net.Conn
	w.ok(p.inSandbox(p.Path(sandbox), func() (err error) {
		c, err = net.Dial("udp4", "127.0.0.11:53")
		return err
	}))
	defer c.Close()
	w.ok(c.SetDeadline(time.Now().Add(10 * time.Second)))
	_, err = c.Write(m)
	w.ok(err)
	buf := make([]byte, 2000)
	n, err := c.Read(buf)
	if err != nil {
		return networktest.Answer{}
	}
	var got dnsmessage.Message
	w.ok(got.Unpack(buf[:n]))
	a := networktest.Answer{Served: true, Exists: got.RCode != dnsmessage.RCodeNameError}
	for _, r := range got.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			a.Addresses = append(a.Addresses, netip.AddrFrom4(b.A))
		case *dnsmessage.AAAAResource:
			a.Addresses = append(a.Addresses, netip.AddrFrom16(b.AAAA))
		}
	}
	slices.SortFunc(a.Addresses, netip.Addr.Compare)
	return a
}

// TestResolverGlibc: the C library's resolver, with a resolv.conf as containers
// have it.
func TestResolverGlibc(t *testing.T) {
	if _, err := exec.LookPath("getent"); err != nil {
		t.Skip("there is no getent here")
	}
	w := newWorld(t)
	p := w.plane("")
	c := named()
	var many []netip.Addr
	for i := range 600 {
		many = append(many, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}))
	}
	names := map[string][]netip.Addr{"many": many}
	maps.Copy(names, c.Zones["n"].Names)
	z := *c.Zones["n"]
	z.Names = names
	c.Zones["n"] = &z
	w.server(w.host, "127.0.0.53:53", netip.MustParseAddr("192.0.2.1"))
	s := *c.Sandboxes["s1-0"]
	s.Resolver = &network.Resolver{Zones: []string{"n"}, Servers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53")}}
	c.Sandboxes["s1-0"] = &s
	w.ok(p.Set(t.Context(), c))
	conf := filepath.Join(w.dir, "resolv.conf")
	w.ok(os.WriteFile(conf, []byte("nameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n"), 0o644))
	getent := func(args ...string) string {
		t.Helper()
		script := `mount --bind "$0" /etc/resolv.conf && exec getent "$@"`
		out, err := exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=" + p.Path("s1-0"), "unshare", "-m", "sh", "-c", script, conf}, args...)...).CombinedOutput()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 2 {
			return "none"
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, q := range []struct{ kind, name, want string }{
		{"ahostsv4", "web", "172.17.0.2"}, {"ahostsv4", "WEB.backend", "172.17.0.2"}, {"ahostsv6", "both", "fd17::2"},
		{"hosts", "172.17.0.2", "web.backend"}, {"ahostsv4", "nothing.backend.", "none"}, {"ahostsv4", "example.com", "192.0.2.1"},
		{"ahostsv4", "big.example.com", "192.0.2.1"}, {"ahosts", "web", "172.17.0.2"},
	} {
		if got := getent(q.kind, q.name); !strings.Contains(got, q.want) {
			t.Errorf("getent %s %s: %s, want %s", q.kind, q.name, got, q.want)
		}
	}
	if got := strings.Count(getent("ahostsv4", "many"), "STREAM"); got != len(many) { // by TCP
		t.Errorf("%d of %d addresses", got, len(many))
	}
}
