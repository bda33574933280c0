package linux

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/network"
)

// What the maps of bpf/balancer.c hold. It follows from the config alone, and
// from the namespaces' cookies: numbers are hashes of what they stand for, so
// that a daemon that starts anew, or looks for damage, compares and is done.

// address16 is an IPv6 address, or an IPv4 one mapped.
type address16 = [16]byte

type vipKey struct {
	View uint64
	VIP  address16
}

type vipValue struct {
	Service, Generation uint64
	Backends, Balance   uint32
}

type backendKey struct {
	Service, Generation uint64
	Slot, _             uint32
}

type memberKey struct {
	Service uint64
	Backend address16
}

// Values of vipValue.Balance.
const (
	balanceRandom = iota
	balanceClient
	balanceLeast
)

func balanceNumber(b network.Balance) uint32 {
	switch b {
	case network.BalanceClient:
		return balanceClient
	case network.BalanceLeast:
		return balanceLeast
	}
	return balanceRandom
}

func balanceOf(n uint32) network.Balance {
	switch n {
	case balanceClient:
		return network.BalanceClient
	case balanceLeast:
		return network.BalanceLeast
	}
	return network.BalanceRandom
}

// table is a map of the kernel's as it should be, with what leads there from
// what it is.
type table[K, V comparable] struct {
	want map[K]V
	put  map[K]V
	drop map[K]bool
}

func newTable[K, V comparable]() *table[K, V] {
	return &table[K, V]{want: map[K]V{}, put: map[K]V{}, drop: map[K]bool{}}
}

func (t *table[K, V]) set(k K, v V) {
	if old, ok := t.want[k]; ok && old == v {
		return
	}
	t.want[k], t.put[k] = v, v
	delete(t.drop, k)
}

func (t *table[K, V]) remove(k K) {
	if _, ok := t.want[k]; !ok {
		return
	}
	delete(t.want, k)
	delete(t.put, k)
	t.drop[k] = true
}

// compare forgets what there was to do, and says what leads from have instead.
func (t *table[K, V]) compare(have map[K]V) {
	clear(t.put)
	clear(t.drop)
	for k, v := range t.want {
		if old, ok := have[k]; !ok || old != v {
			t.put[k] = v
		}
	}
	for k := range have {
		if _, ok := t.want[k]; !ok {
			t.drop[k] = true
		}
	}
}

func (t *table[K, V]) done() {
	clear(t.put)
	clear(t.drop)
}

// present is the value of a table that only has keys.
type present = struct{}

// balancerTables are all maps, and what their entries follow from.
type balancerTables struct {
	netns    *table[uint64, uint64] // cookie to view
	vips     *table[vipKey, vipValue]
	backends *table[backendKey, address16]
	members  *table[memberKey, present]

	boxes    map[string]boxEntry
	views    map[uint64]*view
	services map[string]map[netip.Addr]*service // by network
}

type boxEntry struct{ cookie, view uint64 }

// view is what sandboxes in the same networks have in common.
type view struct {
	networks []string
	boxes    int
}

// service is a virtual address with its generation of backends.
type service struct {
	vipValue
	list []netip.Addr
}

func newBalancerTables() *balancerTables {
	return &balancerTables{
		netns: newTable[uint64, uint64](), vips: newTable[vipKey, vipValue](),
		backends: newTable[backendKey, address16](), members: newTable[memberKey, present](),
		boxes: map[string]boxEntry{}, views: map[uint64]*view{}, services: map[string]map[netip.Addr]*service{},
	}
}

func hash64(parts ...[]byte) uint64 {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(p))))
		_, _ = h.Write(p)
	}
	return binary.LittleEndian.Uint64(h.Sum(nil))
}

func serviceID(k network.BalancerKey) uint64 {
	return hash64([]byte(k.Network), k.Address.AsSlice())
}

func viewID(networks []string) uint64 { return hash64([]byte(strings.Join(networks, "\x00"))) }

func generationID(list []netip.Addr) uint64 {
	b := make([]byte, 0, 16*len(list))
	for _, a := range list {
		a16 := a.As16()
		b = append(b, a16[:]...)
	}
	return hash64(b)
}

// putService has a virtual address lead to its backends in every view.
func (t *balancerTables) putService(b *network.Balancer) {
	k := b.BalancerKey
	if t.services[k.Network] == nil {
		t.services[k.Network] = map[netip.Addr]*service{}
	}
	old := t.services[k.Network][k.Address]
	s := &service{list: b.Backends, vipValue: vipValue{
		Service: serviceID(k), Generation: generationID(b.Backends), Backends: uint32(len(b.Backends)), Balance: balanceNumber(b.Balance),
	}}
	t.services[k.Network][k.Address] = s
	if old == nil || old.Generation != s.Generation {
		t.fill(s)
	}
	t.show(k)
	if old != nil && old.Generation != s.Generation {
		t.empty(old, s)
	}
}

// dropService forgets a virtual address.
func (t *balancerTables) dropService(k network.BalancerKey) {
	old := t.services[k.Network][k.Address]
	if old == nil {
		return
	}
	if delete(t.services[k.Network], k.Address); len(t.services[k.Network]) == 0 {
		delete(t.services, k.Network)
	}
	t.show(k)
	t.empty(old, &service{})
}

func (t *balancerTables) fill(s *service) {
	for i, a := range s.list {
		t.backends.set(backendKey{Service: s.Service, Generation: s.Generation, Slot: uint32(i)}, a.As16())
		t.members.set(memberKey{s.Service, a.As16()}, present{})
	}
}

// empty removes a generation, and the members that the next one doesn't have.
func (t *balancerTables) empty(old, next *service) {
	for i, a := range old.list {
		t.backends.remove(backendKey{Service: old.Service, Generation: old.Generation, Slot: uint32(i)})
		if _, found := slices.BinarySearchFunc(next.list, a, netip.Addr.Compare); !found {
			t.members.remove(memberKey{old.Service, a.As16()})
		}
	}
}

// show brings an address up to date in all views of its network.
func (t *balancerTables) show(k network.BalancerKey) {
	for id, v := range t.views {
		if slices.Contains(v.networks, k.Network) {
			t.showIn(id, v, k.Address)
		}
	}
}

// showIn: where networks overlap, the first that has the address counts.
func (t *balancerTables) showIn(id uint64, v *view, a netip.Addr) {
	key := vipKey{View: id, VIP: a.As16()}
	for _, n := range v.networks {
		if s := t.services[n][a]; s != nil {
			t.vips.set(key, s.vipValue)
			return
		}
	}
	t.vips.remove(key)
}

// putBox gives a sandbox the view of its networks.
func (t *balancerTables) putBox(b *vipBox, cookie uint64) {
	old, had := t.boxes[b.id]
	id := viewID(b.networks)
	v := t.views[id]
	if v == nil {
		v = &view{networks: b.networks}
		t.views[id] = v
		for _, n := range b.networks {
			for a := range t.services[n] {
				t.showIn(id, v, a)
			}
		}
	}
	v.boxes++
	t.boxes[b.id] = boxEntry{cookie, id}
	t.netns.set(cookie, id)
	if had {
		t.leave(old, cookie)
	}
}

// dropBox forgets a sandbox.
func (t *balancerTables) dropBox(id string) {
	if old, ok := t.boxes[id]; ok {
		delete(t.boxes, id)
		t.leave(old, 0)
	}
}

// leave takes back what a sandbox had that has another cookie now.
func (t *balancerTables) leave(old boxEntry, cookie uint64) {
	if old.cookie != cookie {
		t.netns.remove(old.cookie)
	}
	v := t.views[old.view]
	if v.boxes--; v.boxes > 0 {
		return
	}
	delete(t.views, old.view)
	for _, n := range v.networks {
		for a := range t.services[n] {
			t.vips.remove(vipKey{View: old.view, VIP: a.As16()})
		}
	}
}
