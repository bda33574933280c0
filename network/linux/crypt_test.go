package linux

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
)

// encrypted makes an overlay one.
func encrypted(o *network.Overlay) { o.Encrypted, o.MTU = true, 1310 }

func key(id uint32) network.Key {
	k := network.Key{ID: id}
	copy(k.Secret[:], bytes.Repeat([]byte{byte(id)}, len(k.Secret)))
	return k
}

// setKeys tells a node keys; the last argument is the one to send with.
func (p *pair) setKeys(node int, send uint32, ids ...uint32) {
	p.t.Helper()
	c := p.configs[node].Clone()
	c.Keys = network.Keys{Send: send}
	for _, id := range ids {
		c.Keys.All = append(c.Keys.All, key(id))
	}
	p.configs[node] = c
	p.ok(p.planes[node].Set(p.t.Context(), c))
}

// newEncrypted makes a pair of nodes that have a key. Before, they complain.
func newEncrypted(t testing.TB) *pair {
	p := &pair{world: newWorld(t)}
	for i, host := range []string{p.host, p.outside} {
		p.planes[i] = p.planeOn(host, []string{"node0", "node1"}[i], "")
		p.configs[i] = pairConfig(i, encrypted)
	}
	p.setKeys(0, 1, 1)
	p.setKeys(1, 1, 1)
	p.established()
	return p
}

func passes(p *Plane) bool {
	s, _ := p.KeeperStatus()
	return s.Established
}

func counts(p *Plane) crypt.Counts {
	s, _ := p.KeeperStatus()
	return s.Counts
}

// established waits until packets pass.
func (p *pair) established() {
	p.t.Helper()
	for _, plane := range p.planes {
		for end := time.Now().Add(10 * time.Second); !passes(plane); {
			if time.Now().After(end) {
				p.t.Fatal("the nodes do not find each other", counts(p.planes[0]), counts(p.planes[1]))
			}
			<-time.After(time.Millisecond)
		}
	}
}

func TestEncrypted(t *testing.T) {
	w := newEncrypted(t)
	for i := range w.planes {
		w.serve(w.planes[i].Path("c1"), ":80")
		w.serve(w.planes[i].Path("c2"), ":80")
	}
	for _, c := range []struct{ from, to, seen string }{
		{w.planes[0].Path("c1"), "10.0.1.3:80", "10.0.1.2"},
		{w.planes[1].Path("c1"), "10.0.1.2:80", "10.0.1.3"},
		{w.planes[0].Path("c1"), "[fd01::3]:80", "fd01::2"},
		{w.planes[0].Path("c2"), "10.0.2.3:80", "10.0.2.2"},
		{w.planes[0].Path("c1"), "10.0.2.3:80", "error"},
	} {
		if got := w.ask(c.from, c.to); got != c.seen {
			t.Errorf("%s sees %q, not %q", c.to, got, c.seen)
		}
	}
	for _, to := range []string{"10.0.1.3:81", "[fd01::3]:82"} {
		w.transfer(w.planes[0].Path("c1"), w.planes[1].Path("c1"), to, 32<<20)
	}
}

// transfer sends bytes over TCP and checks what arrives.
func (w *world) transfer(from, to, addr string, n int) {
	w.t.Helper()
	got := make(chan []byte, 1)
	w.in(to, func() {
		l, err := net.Listen("tcp", addr)
		w.ok(err)
		go func() {
			defer l.Close()
			c, err := l.Accept()
			if err != nil {
				got <- nil
				return
			}
			b, _ := io.ReadAll(c)
			got <- b
		}()
	})
	want := make([]byte, n)
	for i := range want {
		want[i] = byte(i ^ i>>8 ^ i>>16)
	}
	w.in(from, func() {
		c, err := net.DialTimeout("tcp", addr, 3*time.Second)
		w.ok(err)
		w.ok(c.SetDeadline(time.Now().Add(60 * time.Second)))
		_, err = c.Write(want)
		w.ok(err)
		c.Close()
	})
	if b := <-got; !bytes.Equal(b, want) {
		w.t.Errorf("%d bytes arrived of %d, or others", len(b), n)
	}
}

// capture hears all that passes a device, until the function that it returns is
// called, which returns the packets.
func (w *world) capture(ns, device string) func() [][]byte {
	w.t.Helper()
	var f *os.File
	w.in(ns, func() {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
		w.ok(err)
		w.ok(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
		w.ok(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: w.link(device).Attrs().Index}))
		f = os.NewFile(uintptr(fd), "capture")
	})
	done := make(chan [][]byte)
	go func() {
		var packets [][]byte
		for buf := make([]byte, 1<<17); ; {
			n, err := f.Read(buf)
			if err != nil {
				done <- packets
				return
			}
			packets = append(packets, bytes.Clone(buf[:n]))
		}
	}()
	return func() [][]byte {
		w.ok(f.SetReadDeadline(time.Now().Add(50 * time.Millisecond))) // what has passed is there
		p := <-done
		w.ok(f.Close())
		return p
	}
}

// udpPort is the port that an IPv4 frame goes to; 0 for others.
func udpPort(f []byte) int {
	if len(f) < 42 || f[12] != 8 || f[13] != 0 || f[23] != unix.IPPROTO_UDP {
		return 0
	}
	return int(f[36])<<8 | int(f[37])
}

const secret = "what nobody else may read "

// chatter sends the secret from a namespace to addresses, without end.
func (w *world) chatter(ns string, to ...string) (stop func()) {
	w.t.Helper()
	var all []net.Conn
	w.in(ns, func() {
		for _, a := range to {
			c, err := net.Dial("udp", a)
			w.ok(err)
			all = append(all, c)
		}
	})
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			for _, c := range all {
				_, _ = c.Write(bytes.Repeat([]byte(secret), 20)) // there may be no way yet
			}
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		for _, c := range all {
			c.Close()
		}
	}
}

// Nothing passes the wire in clear text: not before there are keys, not with the
// first packet, not with the last, not where there is nobody to talk to.
func TestEncryptedOnTheWire(t *testing.T) {
	w := &pair{world: newWorld(t)}
	heard := w.capture(w.outside, "up0")
	for i, host := range []string{w.host, w.outside} {
		w.planes[i] = w.planeOn(host, []string{"node0", "node1"}[i], "")
		w.configs[i] = pairConfig(i, encrypted)
	}
	alone := w.configs[0].Clone()
	o := *alone.Overlays["net1"]
	o.Peers = nil
	alone.Overlays["net1"] = &o
	alone.Keys = network.Keys{All: []network.Key{key(1)}, Send: 1}
	w.ok(w.planes[0].Set(t.Context(), alone))
	stop := w.chatter(w.planes[0].Path("c1"), "10.0.1.3:9", "10.0.1.77:9", "10.0.1.255:9", "[fd01::3]:9")
	var failed *network.SetError
	if err := w.planes[0].Set(t.Context(), w.configs[0]); !errors.As(err, &failed) || failed.Items[network.TunnelItem("net1")] == nil {
		t.Errorf("without keys: %v", err)
	}
	w.setKeys(0, 1, 1)
	w.setKeys(1, 1, 1)
	w.established()
	w.serve(w.planes[1].Path("c1"), ":80")
	if got := w.ask(w.planes[0].Path("c1"), "10.0.1.3:80"); got != "10.0.1.2" {
		t.Errorf("the peer sees %q", got)
	}
	w.ok(w.planes[0].Set(t.Context(), alone))
	w.ok(w.planes[0].Set(t.Context(), w.configs[0]))
	ending := w.configs[0].Clone()
	clear(ending.Overlays)
	clear(ending.Sandboxes)
	w.ok(w.planes[0].Set(t.Context(), ending)) // as its container sends
	stop()
	ours := 0
	packets := heard()
	for _, p := range packets {
		switch {
		case bytes.Contains(p, []byte(secret)):
			t.Fatalf("clear text: %x", p[:64])
		case udpPort(p) == 4789:
			t.Fatalf("a tunnel in clear text: %x", p[:64])
		case udpPort(p) == 4790:
			ours++
		}
	}
	if ours < 10 {
		t.Errorf("%d of %d packets are encrypted: nothing was tested", ours, len(packets))
	}
}

// What was recorded or made up is dropped and counted; clear text is not taken for
// an encrypted network.
func TestEncryptedForged(t *testing.T) {
	w := newEncrypted(t)
	recorded := w.capture(w.outside, "up0")
	var heard net.PacketConn
	w.in(w.planes[0].Path("c1"), func() {
		var err error
		heard, err = net.ListenPacket("udp", ":9")
		w.ok(err)
	})
	defer heard.Close()
	var from net.Conn
	w.in(w.planes[1].Path("c1"), func() {
		var err error
		from, err = net.Dial("udp", "10.0.1.2:9")
		w.ok(err)
	})
	defer from.Close()
	expect := func(want string) {
		t.Helper()
		_, err := from.Write([]byte(want))
		w.ok(err)
		w.ok(heard.SetReadDeadline(time.Now().Add(3 * time.Second)))
		b := make([]byte, 100)
		n, _, err := heard.ReadFrom(b)
		w.ok(err)
		if string(b[:n]) != want {
			t.Errorf("%q arrives, not %q", b[:n], want)
		}
	}
	expect("once")
	packets := recorded()
	w.in(w.outside, func() { w.address("up0", "10.99.0.66/24") })
	send := func(from, to string, b []byte) {
		w.in(w.outside, func() {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
			w.ok(err)
			defer c.Close()
			_, err = c.Write(b)
			w.ok(err)
		})
	}
	for _, p := range packets {
		if udpPort(p) != 4790 {
			continue
		}
		for _, a := range []string{"10.99.0.2", "10.99.0.66"} {
			send(a, "10.99.0.1:4790", p[42:])
			p[42+12]++ // of the counter
			send(a, "10.99.0.1:4790", p[42:])
			send(a, "10.99.0.1:4790", p[42:50])
		}
	}
	send("10.99.0.2", "10.99.0.1:4789", vxlanFrame(4097, netip.MustParseAddr("10.0.1.3"), netip.MustParseAddr("10.0.1.2"), "in the clear"))
	expect("the next")
	c := counts(w.planes[0])
	for _, why := range []string{"replayed", "forged", "malformed", "unknown-node"} {
		if c.Dropped[why] == 0 {
			t.Errorf("none is counted as %s: %+v", why, c)
		}
	}
	if g := w.planes[0].guard.is; g == nil || len(g.ids) != 2 || len(g.sources) != 0 {
		t.Errorf("%+v", g)
	}
}

// pingPong has a datagram of each of some flows under way at a time, and fails if
// one is lost.
func (w *world) pingPong(from, to, addr string, flows int) (stop func() int, pass func()) {
	w.t.Helper()
	w.in(to, func() {
		c, err := net.ListenPacket("udp4", addr)
		w.ok(err)
		w.t.Cleanup(func() { c.Close() })
		go func() {
			for b := make([]byte, 2000); ; {
				n, a, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(b[:n], a)
			}
		}()
	})
	end := make(chan struct{})
	var wg sync.WaitGroup
	counts := make([]atomic.Int64, flows)
	for i := range flows {
		var c net.Conn
		w.in(from, func() {
			var err error
			c, err = net.Dial("udp4", addr)
			w.ok(err)
		})
		wg.Go(func() {
			defer c.Close()
			for b := make([]byte, 200); ; counts[i].Add(1) {
				select {
				case <-end:
					return
				default:
				}
				_, err := c.Write(b)
				if err == nil {
					_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
					_, err = c.Read(b)
				}
				if err != nil {
					w.t.Errorf("after %d datagrams: %v", counts[i].Load(), err)
					return
				}
			}
		})
	}
	stop = func() (sum int) {
		close(end)
		wg.Wait()
		for i := range counts {
			sum += int(counts[i].Load())
		}
		return sum
	}
	// pass returns when what is under way has come back.
	pass = func() {
		w.t.Helper()
		for i := range counts {
			for was := counts[i].Load(); counts[i].Load() < was+2 && !w.t.Failed(); {
				<-time.After(100 * time.Microsecond)
			}
		}
	}
	return stop, pass
}

// Keys change under load, and no packet is lost.
func TestEncryptedRotation(t *testing.T) {
	w := newEncrypted(t)
	stop, pass := w.pingPong(w.planes[0].Path("c1"), w.planes[1].Path("c1"), "10.0.1.3:7", 8)
	for k := uint32(1); k < 20; k++ {
		for node := range 2 {
			w.setKeys(node, k, k, k+1)
		}
		for node := range 2 {
			w.setKeys(node, k+1, k, k+1)
		}
		pass()
		for node := range 2 {
			w.setKeys(node, k+1, k+1)
		}
	}
	if n := stop(); n < 100 {
		t.Errorf("only %d datagrams", n)
	}
	if c := counts(w.planes[0]); c.Dropped["no-key"]+c.Dropped["forged"]+c.Dropped["replayed"] > 0 {
		t.Errorf("%+v", c)
	}
}

// A daemon that was killed and comes back takes over what carries packets, which go on
// meanwhile; a keeper that was killed is another one soon, and is found by the other
// node. Connections go on.
func TestEncryptedRestart(t *testing.T) {
	w := newEncrypted(t)
	alive := w.lasting(w.planes[0].Path("c1"), w.planes[1].Path("c1"), "10.0.1.3:81")
	alive()
	stop, pass := w.pingPong(w.planes[0].Path("c1"), w.planes[1].Path("c1"), "10.0.1.3:7", 4)
	for _, who := range []int{0, 1, 0} {
		w.kill(w.planes[who])
		pass()
		w.planes[who] = w.planeOn([]string{w.host, w.outside}[who], []string{"node0", "node1"}[who], "")
		pass()
		w.ok(w.planes[who].Set(t.Context(), w.configs[who]))
		pass()
		alive()
	}
	if n := stop(); n < 100 {
		t.Errorf("only %d datagrams", n)
	}
	for _, who := range []int{0, 1, 0} {
		w.killKeeper(w.planes[who])
		w.ok(w.planes[who].Set(t.Context(), w.configs[who]))
		w.established()
		alive()
	}
}

// Datagrams are lost on the way; what is sent over TCP arrives.
func TestEncryptedLoss(t *testing.T) {
	w := newEncrypted(t)
	for _, p := range w.planes {
		w.ok(p.transact(func(c *filterConn) error {
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "loss"})
			chain := c.AddChain(&nftables.Chain{Table: table, Name: "input", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(0)})
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
				&expr.Numgen{Register: 1, Modulus: 50, Type: unix.NFT_NG_RANDOM}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
			}})
			return nil
		}))
	}
	w.transfer(w.planes[0].Path("c1"), w.planes[1].Path("c1"), "10.0.1.3:81", 8<<20)
}

// A port that somebody else has is said, and taken once it is free.
func TestEncryptedPortInUse(t *testing.T) {
	w := &pair{world: newWorld(t)}
	p := w.planeOn(w.host, "node0", "")
	w.planes[0], w.configs[0] = p, pairConfig(0, encrypted)
	w.configs[0].Keys = network.Keys{All: []network.Key{key(1)}, Send: 1}
	var c net.PacketConn
	w.in(w.host, func() {
		var err error
		c, err = net.ListenPacket("udp4", "10.99.0.1:4790")
		w.ok(err)
	})
	var failed *network.SetError
	if err := p.Set(t.Context(), w.configs[0]); !errors.As(err, &failed) || len(failed.Items) != 2 || !strings.Contains(failed.Error(), "4790") {
		t.Errorf("%v", err)
	}
	w.ok(c.Close())
	w.ok(p.Set(t.Context(), w.configs[0]))
	if taps := p.keeper.Taps(); len(taps) != 2 {
		t.Errorf("%+v", taps)
	}
}
