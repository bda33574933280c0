package network

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

func prefixOf(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

func TestPoolBounds(t *testing.T) {
	for _, c := range []struct {
		subnet, within, first, last string
		free                        uint64
	}{
		{"10.0.0.0/24", "", "10.0.0.1", "10.0.0.254", 254},
		{"10.0.0.0/30", "", "10.0.0.1", "10.0.0.2", 2},
		{"10.0.0.0/31", "", "10.0.0.0", "10.0.0.1", 2},
		{"10.0.0.0/24", "10.0.0.128/25", "10.0.0.128", "10.0.0.254", 127},
		{"10.0.0.0/24", "10.0.0.0/25", "10.0.0.1", "10.0.0.127", 127},
		{"fd00::/64", "", "fd00::1", "fd00::ffff:ffff:ffff:ffff", 1<<64 - 1},
		{"fd00::/126", "", "fd00::1", "fd00::3", 3},
	} {
		p := newPool("n", prefixOf(c.subnet), prefixOf(c.within))
		if p.first.String() != c.first || p.last.String() != c.last || p.free() != c.free {
			t.Errorf("%s %s: %s to %s, %d free", c.subnet, c.within, p.first, p.last, p.free())
		}
	}
}

func TestPoolIsUsedUp(t *testing.T) {
	p := newPool("web", prefixOf("10.0.0.0/29"), netip.Prefix{})
	for range 6 {
		if _, err := p.take(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.take()
	if !api.Is(err, api.ResourceExhausted) || !strings.Contains(err.Error(), "10.0.0.0/29") || !strings.Contains(err.Error(), "6 in use") {
		t.Errorf("got %v", err)
	}
}

// What was freed is the last to be given out again.
func TestPoolGoesRound(t *testing.T) {
	p := newPool("web", prefixOf("10.0.0.0/29"), netip.Prefix{})
	a, _ := p.take()
	p.release(a)
	for range 5 {
		if b, err := p.take(); err != nil || a == b {
			t.Fatalf("got %s, %v", b, err)
		}
	}
	if b, err := p.take(); b != a {
		t.Errorf("got %s, %v; only %s is free", b, err, a)
	}
}

// A pool never gives out an address twice, nor one that it may not, and what it
// has can be recomputed from what is attached.
func TestPoolProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		subnet := prefixOf(rapid.SampledFrom([]string{"10.0.0.0/28", "10.0.0.0/31", "fd00::/124"}).Draw(r, "subnet"))
		p := newPool("n", subnet, netip.Prefix{})
		held := map[netip.Addr]bool{}
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			if len(held) > 0 && rapid.Bool().Draw(r, "release") {
				for a := range held {
					p.release(a)
					delete(held, a)
					break
				}
				continue
			}
			a, err := p.take()
			if err != nil {
				if p.free() != 0 {
					r.Fatalf("%v with %d free", err, p.free())
				}
				continue
			}
			if held[a] || !subnet.Contains(a) {
				r.Fatalf("gave out %s", a)
			}
			held[a] = true
		}
		again := newPool("n", subnet, netip.Prefix{})
		for a := range held {
			if err := again.claim(a); err != nil {
				r.Fatal(err)
			}
		}
		again.resume()
		if again.free() != p.free() {
			r.Fatalf("%d free, recomputed %d", p.free(), again.free())
		}
		if a, err := again.take(); err == nil && held[a] {
			r.Fatalf("gave out %s again", a)
		}
	})
}

func TestFreeSubnet(t *testing.T) {
	busy := func(s ...string) (l []netip.Prefix) {
		for _, p := range s {
			l = append(l, prefixOf(p))
		}
		return l
	}
	for _, c := range []struct {
		busy []netip.Prefix
		want string
	}{
		{nil, "172.17.0.0/16"},
		{busy("172.17.5.0/24"), "172.18.0.0/16"},
		{busy("172.16.0.0/12"), "192.168.0.0/20"},
		{busy("172.16.0.0/12", "192.168.0.0/24", "192.168.16.0/21"), "192.168.32.0/20"},
		{busy("0.0.0.0/1"), "172.17.0.0/16"},
		{busy("172.16.0.0/12", "192.168.0.0/16"), ""},
	} {
		got, err := freeSubnet(DefaultPools(), false, c.busy)
		if c.want == "" {
			if !api.Is(err, api.ResourceExhausted) {
				t.Errorf("%v: %s, %v", c.busy, got, err)
			}
		} else if got.String() != c.want {
			t.Errorf("%v: %s, %v, not %s", c.busy, got, err, c.want)
		}
	}
}
