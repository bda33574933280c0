package linux

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
)

// kernelMaps is what a kernel has been told.
type kernelMaps struct {
	netns    map[uint64]uint64
	vips     map[vipKey]vipValue
	backends map[backendKey]address16
	members  map[memberKey]present
}

func newKernelMaps() *kernelMaps {
	return &kernelMaps{map[uint64]uint64{}, map[vipKey]vipValue{}, map[backendKey]address16{}, map[memberKey]present{}}
}

// whole reports whether all that a program could come by is there.
func (k *kernelMaps) whole(t *rapid.T) {
	for key, v := range k.vips {
		for i := range v.Backends {
			a, ok := k.backends[backendKey{Service: v.Service, Generation: v.Generation, Slot: i}]
			if !ok {
				t.Fatalf("%v leads to slot %d of %d, which is not there", key, i, v.Backends)
			}
			if _, ok := k.members[memberKey{v.Service, a}]; !ok {
				t.Fatalf("%v leads to a backend that is no member", key)
			}
		}
	}
}

// write does what ebpfBalancer.write does, and looks after every entry.
func (k *kernelMaps) write(r *rapid.T, t *balancerTables) {
	putInto(k.members, t.members, func() {})
	putInto(k.backends, t.backends, func() {})
	putInto(k.vips, t.vips, func() { k.whole(r) })
	putInto(k.netns, t.netns, func() {})
	dropFrom(k.netns, t.netns, func() {})
	dropFrom(k.vips, t.vips, func() { k.whole(r) })
	dropFrom(k.backends, t.backends, func() { k.whole(r) })
	dropFrom(k.members, t.members, func() { k.whole(r) })
}

func putInto[K, V comparable](m map[K]V, t *table[K, V], look func()) {
	for k, v := range t.put {
		m[k] = v
		look()
	}
	clear(t.put)
}

func dropFrom[K, V comparable](m map[K]V, t *table[K, V], look func()) {
	for k := range t.drop {
		delete(m, k)
		look()
	}
	clear(t.drop)
}

// However services and sandboxes come and go, the maps are what a daemon that
// starts anew would write; and at no moment does an address lead to a backend
// that isn't there.
func TestBalancerTables(t *testing.T) {
	nets := []string{"n1", "n2", "n3"}
	rapid.Check(t, func(r *rapid.T) {
		kernel, tables := newKernelMaps(), newBalancerTables()
		services := map[network.BalancerKey]*network.Balancer{}
		boxes := map[string]*vipBox{}
		cookies, last := map[string]uint64{}, uint64(0)
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			for range rapid.IntRange(1, 4).Draw(r, "changes") {
				switch rapid.IntRange(0, 3).Draw(r, "what") {
				case 0:
					b := drawBalancer(r, nets)
					services[b.BalancerKey] = b
					tables.putService(b)
				case 1:
					k := drawBalancer(r, nets).BalancerKey
					delete(services, k)
					tables.dropService(k)
				case 2:
					b := &vipBox{id: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "box")}
					b.networks = rapid.Permutation(nets).Draw(r, "networks")[:rapid.IntRange(1, 3).Draw(r, "in")]
					if cookies[b.id] == 0 || rapid.Bool().Draw(r, "made anew") {
						last++
						cookies[b.id] = last
					}
					boxes[b.id] = b
					tables.putBox(b, cookies[b.id])
				case 3:
					id := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "box")
					delete(boxes, id)
					delete(cookies, id)
					tables.dropBox(id)
				}
			}
			kernel.write(r, tables)
			fresh, want := newBalancerTables(), newKernelMaps()
			for _, b := range services {
				fresh.putService(b)
			}
			for id, b := range boxes {
				fresh.putBox(b, cookies[id])
			}
			want.write(r, fresh)
			if d := cmp.Diff(want, kernel, cmp.AllowUnexported(kernelMaps{})); d != "" {
				r.Fatalf("what is written step by step (+) is not what is written at once (-):\n%s", d)
			}
			fresh.vips.compare(kernel.vips)
			if len(fresh.vips.put)+len(fresh.vips.drop) > 0 {
				r.Fatal("a comparison finds differences where there are none")
			}
		}
	})
}

func drawBalancer(r *rapid.T, nets []string) *network.Balancer {
	b := &network.Balancer{BalancerKey: network.BalancerKey{
		Network: rapid.SampledFrom(nets).Draw(r, "network"),
		Address: netip.MustParseAddr(rapid.SampledFrom([]string{"10.0.0.100", "10.0.0.101", "fd00::100"}).Draw(r, "vip")),
	}}
	for i := range 4 {
		if !rapid.Bool().Draw(r, "backend") {
			continue
		}
		if b.Address.Is4() {
			b.Backends = append(b.Backends, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 2)}))
		} else {
			b.Backends = append(b.Backends, netip.AddrFrom16([16]byte{0xfd, 15: byte(i + 2)}))
		}
	}
	b.Balance = rapid.SampledFrom([]network.Balance{network.BalanceRandom, network.BalanceClient, network.BalanceLeast}).Draw(r, "balance")
	return b
}
