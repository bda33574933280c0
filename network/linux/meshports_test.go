package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// New connections are spread; established ones stay where they are.
func TestMeshSpread(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	count := func(at string, n int) map[string]int {
		got := map[string]int{}
		for range n {
			_, name := w.query(w.hosts["out"], "tcp", at)
			got[name]++
		}
		return got
	}
	got := count("10.99.0.3:8000", 400)
	if got["1"]+got["2"] != 400 || got["1"] < 130 || got["2"] < 130 {
		t.Errorf("400 connections: %v", got)
	}
	c, err := w.dial(w.hosts["out"], "tcp", "10.99.0.3:8000")
	w.ok(err)
	defer c.Close()
	_, first := say(c)
	other := map[string]int{"1": 22, "2": 21}[first]
	for i := 1; i <= 3; i++ {
		w.config[i] = w.config[i].Clone()
		publish(w.config[i], network.TCP, 8000, other)
		publish(w.config[i], network.TCP, 8003, other)
		delete(w.config[i].MeshPorts, network.MeshKey{Protocol: network.TCP, Port: 8001})
	}
	w.set()
	if got := count("10.99.0.3:8000", 50); got[first] != 0 || len(got) != 1 {
		t.Errorf("new connections after %s was taken out: %v", first, got)
	}
	if _, name := say(c); name != first {
		t.Errorf("an established connection went from %s to %s", first, name)
	}
	if seen, _ := w.query(w.hosts["out"], "tcp", "10.99.0.1:8001"); seen != "error" {
		t.Error("a port that is not published any more answers")
	}
	if seen, _ := w.query(w.hosts["out"], "tcp", "10.99.0.1:8003"); seen != "10.99.0.100" {
		t.Errorf("a port that was published later: %s", seen)
	}
	for i := 1; i <= 3; i++ {
		w.config[i] = w.config[i].Clone()
		publish(w.config[i], network.TCP, 8000, 21, 22).Balance = network.BalanceClient
	}
	w.set()
	if got := count("10.99.0.1:8000", 20); len(got) != 1 {
		t.Errorf("one client, by its address: %v", got)
	} else if more := count("10.99.0.3:8000", 20); len(more) != 1 || fmt.Sprint(more) != fmt.Sprint(got) {
		t.Errorf("one client, by its address, by another node: %v, then %v", got, more)
	}
}

// A port without backends refuses at once.
func TestMeshRefused(t *testing.T) {
	w := newMeshWorld(t)
	for i := 1; i <= 3; i++ {
		for _, proto := range []network.Protocol{network.TCP, network.UDP} {
			publish(w.config[i], proto, 8004)
			publish(w.config[i], proto, 8005).On = pfx("10.99.0.0/24")
		}
	}
	w.set()
	for _, from := range []string{"out", "h1", "h2"} {
		for _, to := range []string{"10.99.0.1:8004", "[fd99::1]:8004", "10.99.0.1:8005"} {
			for _, proto := range []string{"tcp", "udp"} {
				start := time.Now()
				c, err := w.dial(w.hosts[from], proto, to)
				if err == nil {
					_, text := say(c)
					c.Close()
					err = errors.New(text)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("%s from %s to %s: %v after %v", proto, from, to, err, took)
				}
			}
		}
	}
}

// A port that a process of the host has stays that process's; a process that comes
// later doesn't get one that is published; and neither does another published port.
func TestMeshPortInUse(t *testing.T) {
	w := newMeshWorld(t)
	var l net.Listener
	w.in(w.hosts["h1"], func() {
		var err error
		l, err = net.Listen("tcp", "0.0.0.0:8001")
		w.ok(err)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "x mine")
			c.Close()
		}
	}()
	k := network.MeshKey{Protocol: network.TCP, Port: 8001}
	err := w.planes[1].Set(t.Context(), w.config[1])
	var se *network.SetError
	if !errors.As(err, &se) || len(se.Items) != 1 || !errors.Is(se.Items[network.MeshPortItem(k)], network.ErrPortInUse) {
		t.Fatalf("got %v", err)
	}
	w.ok(w.planes[2].Set(t.Context(), w.config[2]))
	w.serveTasks()
	if _, name := w.query(w.hosts["out"], "tcp", "10.99.0.1:8001"); name != "mine" {
		t.Errorf("the process's clients meet %s", name)
	}
	if _, name := w.query(w.hosts["out"], "tcp", "10.99.0.2:8001"); name != "1" {
		t.Errorf("by another node: %s", name)
	}
	w.ok(l.Close())
	w.set()
	w.expect("when the process has ended")
	w.in(w.hosts["h1"], func() {
		if l, err := net.Listen("tcp4", "0.0.0.0:8001"); err == nil {
			l.Close()
			t.Error("a process took a published port")
		}
	})
	c := w.config[1].Clone()
	p := published("c", "0.0.0.0:8001", "172.17.0.2:80")
	c.Ports[p.PortKey] = p
	if err := w.planes[1].Set(t.Context(), c); !errors.As(err, &se) || !errors.Is(se.Items[network.PortItem(p.PortKey)], network.ErrPortInUse) {
		t.Errorf("a container's port that is a service's: %v", err)
	}
	w.set()
	w.expect("after that")
}

// Published on some addresses, or on a device.
func TestMeshOn(t *testing.T) {
	w := newMeshWorld(t)
	w.in(w.hosts["h1"], func() {
		w.ok(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}}))
		w.address("lan0", "10.98.0.1/24")
		w.address("up0", "10.99.0.201/24")
	})
	w.in(w.hosts["out"], func() {
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.98.0.0/24")), Gw: net.IPv4(10, 99, 0, 1)}))
	})
	publish(w.config[1], network.TCP, 8005, 21, 22).On = pfx("10.99.0.201/32", "fd99::/64")
	publish(w.config[1], network.TCP, 8006, 21, 22).Devices = []string{"up0"}
	publish(w.config[1], network.TCP, 8007, 21, 22).Devices = []string{"lan0"}
	w.set()
	w.serveTasks()
	h1, out := w.hosts["h1"], w.hosts["out"]
	for _, c := range []struct {
		from, to string
		answers  bool
	}{
		{out, "10.99.0.201:8005", true}, {out, "10.99.0.1:8005", false}, {out, "[fd99::1]:8005", true}, {h1, "127.0.0.1:8005", false},
		{h1, "10.99.0.201:8005", true}, {h1, "10.98.0.1:8005", false},
		{out, "10.99.0.1:8006", true}, {out, "10.99.0.201:8006", true}, {h1, "10.99.0.1:8006", true}, {h1, "10.98.0.1:8006", false},
		{out, "10.98.0.1:8007", false}, {out, "10.99.0.1:8007", false}, {h1, "10.98.0.1:8007", true}, {h1, "127.0.0.1:8007", false},
	} {
		if seen, name := w.query(c.from, "tcp", c.to); (seen != "error") != c.answers {
			t.Errorf("%s: the server saw %s (%s)", c.to, seen, name)
		}
	}
	w.in(h1, func() { // only what is published is held
		l, err := net.Listen("tcp", "10.98.0.1:8005")
		w.ok(err)
		l.Close()
	})
	publish(w.config[1], network.TCP, 8005, 21, 22).On = pfx("10.99.0.1/32")
	delete(w.config[1].MeshPorts, network.MeshKey{Protocol: network.TCP, Port: 8006})
	w.config[1] = w.config[1].Clone()
	w.set()
	if seen, _ := w.query(out, "tcp", "10.99.0.1:8005"); seen != "10.99.0.100" {
		t.Errorf("after it was published elsewhere: %s", seen)
	}
}

// A client may use one port of its own for two nodes, and reach one task by both:
// as a load balancer in front of the nodes does.
func TestMeshSamePort(t *testing.T) {
	w := newMeshWorld(t)
	w.set()
	w.serveTasks()
	w.samePort(t)
}

func (w *meshWorld) samePort(t *testing.T) {
	t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		var conns []net.Conn
		for _, to := range []string{"10.99.0.1:8002", "10.99.0.2:8002", "10.99.0.3:8002"} {
			w.in(w.hosts["out"], func() {
				d := net.Dialer{Timeout: 2 * time.Second, Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) {
						_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
					})
				}}
				if d.LocalAddr = (&net.TCPAddr{Port: 5555}); proto == "udp" {
					d.LocalAddr = &net.UDPAddr{Port: 5555}
				}
				c, err := d.DialContext(t.Context(), proto, to)
				if err != nil {
					t.Errorf("%s %s: %v", proto, to, err)
					return
				}
				t.Cleanup(func() { c.Close() })
				conns = append(conns, c)
			})
		}
		for range 2 {
			for _, c := range conns {
				if seen, name := say(c); seen != "10.99.0.100" || name != "2" {
					t.Errorf("%s %s: %s, %s", proto, c.RemoteAddr(), seen, name)
				}
			}
		}
	}
}

// SCTP is tracked by the kernel here, though it has no such sockets: an INIT, made
// by hand, arrives with the client's address at the port that is meant.
func TestMeshSCTP(t *testing.T) {
	w := newMeshWorld(t)
	publish(w.config[3], network.SCTP, 8009, 22)
	if !w.planes[3].tracksSCTP() {
		err := w.planes[3].Set(t.Context(), w.config[3])
		var se *network.SetError
		if !errors.As(err, &se) || se.Items[network.MeshPortItem(network.MeshKey{Protocol: network.SCTP, Port: 8009})] == nil {
			t.Errorf("a kernel without SCTP: %v", err)
		}
		return
	}
	w.set()
	// Ports, no tag; INIT of 20 bytes: tag 1, window 65,536, a stream each way.
	init := append([]byte{0x13, 0x88, 0x1f, 0x49, 0, 0, 0, 0, 0, 0, 0, 0}, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(init[8:], crc32.Checksum(init, crc32.MakeTable(crc32.Castagnoli)))
	var server net.PacketConn
	w.in(w.task(2), func() {
		var err error
		server, err = net.ListenPacket("ip4:132", "0.0.0.0")
		w.ok(err)
	})
	defer server.Close()
	c, err := w.dial(w.hosts["out"], "ip4:132", "10.99.0.3")
	w.ok(err)
	defer c.Close()
	_, err = c.Write(init)
	w.ok(err)
	buf := make([]byte, 100)
	w.ok(server.SetReadDeadline(time.Now().Add(3 * time.Second)))
	n, from, err := server.ReadFrom(buf)
	w.ok(err)
	if from.String() != "10.99.0.100" || n != len(init) || binary.BigEndian.Uint16(buf[2:]) != 80 {
		t.Errorf("%d bytes from %s: %x", n, from, buf[:n])
	}
}
