package linux

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
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

// established waits until packets pass.
func (p *pair) established() {
	p.t.Helper()
	for _, plane := range p.planes {
		for end := time.Now().Add(10 * time.Second); !plane.cryptNode.Established(); {
			if time.Now().After(end) {
				p.t.Fatal("the nodes do not find each other", p.planes[0].cryptNode.Counts(), p.planes[1].cryptNode.Counts())
			}
			time.Sleep(time.Millisecond)
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
	t.Logf("%+v", w.planes[0].cryptNode.Counts())
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

var _ = netip.Addr{}
