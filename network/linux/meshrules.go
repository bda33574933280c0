package linux

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"github.com/legion-swarm/legion/network"
)

// meshRules is the contents of the mesh's table.
type meshRules struct {
	device       string
	mark         uint32
	four, six    bool       // families that are served
	addr4, addr6 netip.Addr // this node's own in the ingress network
	// private are sources that mean something else on another node, and so are
	// replaced by this node's address: those of its own containers.
	private   []netip.Prefix
	ports     map[network.MeshKey]*meshRule
	hostAddrs map[string][]netip.Addr // not compared
}

// meshRule is what there is of a published port.
type meshRule struct {
	target    uint16
	balance   network.Balance
	four, six []netip.Addr // backends
	on        []netip.Prefix
	devices   []string
	deviceOn  []netip.Addr // addresses of devices now
	relayed   bool         // from IPv6 to IPv4, by the socket that holds it
	// slots are the backends by number, as they are in the table; nil before.
	slots4, slots6 []netip.Addr
}

// newMeshRules returns what the config asks for. host are the host's addresses
// by device.
func newMeshRules(p *Plane, c *network.Config, host map[string][]netip.Addr) *meshRules {
	r := &meshRules{device: p.meshDevice(), mark: p.meshMark(), ports: make(map[network.MeshKey]*meshRule, len(c.MeshPorts)), hostAddrs: host}
	for _, a := range c.Mesh.Addresses {
		if a.Addr().Is4() {
			r.four, r.addr4 = c.Rules4, a.Addr()
		} else {
			r.six, r.addr6 = c.Rules6, a.Addr()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		r.private = slices.Concat(r.private, c.Bridges[name].Subnets(false), c.Bridges[name].Subnets(true))
	}
	own := map[netip.Addr]bool{}
	for _, l := range host {
		for _, a := range l {
			own[a] = true
		}
	}
	for k, port := range c.MeshPorts {
		w := &meshRule{target: port.Target, balance: port.Balance, on: port.On, devices: port.Devices}
		for _, a := range port.Backends {
			switch {
			case own[a]: // what is sent there stays here
				p.log.Warn("network: a task's address in the ingress network is also this host's: connections to this node don't reach that task",
					"address", a, "port", k.String())
			case a.Is4():
				w.four = append(w.four, a)
			default:
				w.six = append(w.six, a)
			}
		}
		for _, d := range port.Devices {
			w.deviceOn = append(w.deviceOn, host[d]...)
		}
		r.ports[k] = w
	}
	return r
}

// narrowed returns the rules without the backends that c, which may be nil, lacks; r
// itself if it has no others.
func (r *meshRules) narrowed(c *network.Config) *meshRules {
	if c == nil {
		return r
	}
	less := r
	for k, w := range r.ports {
		n := w.narrowed(c.MeshPorts[k])
		if n == w {
			continue
		}
		if less == r {
			copied := *r
			copied.ports = maps.Clone(r.ports)
			less = &copied
		}
		less.ports[k] = n
	}
	return less
}

// narrowed returns the rule without the backends that p, which may be nil, lacks; w
// itself if it has no others.
func (w *meshRule) narrowed(p *network.MeshPort) *meshRule {
	if p == nil {
		p = &network.MeshPort{}
	}
	gone := func(a netip.Addr) bool {
		_, found := slices.BinarySearchFunc(p.Backends, a, netip.Addr.Compare)
		return !found
	}
	if !slices.ContainsFunc(w.four, gone) && !slices.ContainsFunc(w.six, gone) {
		return w
	}
	n := *w
	n.four, n.six = slices.DeleteFunc(slices.Clone(w.four), gone), slices.DeleteFunc(slices.Clone(w.six), gone)
	n.slots4, n.slots6 = nil, nil
	return &n
}

// sameFrame reports whether the two differ in ports alone.
func (r *meshRules) sameFrame(o *meshRules) bool {
	return r.device == o.device && r.mark == o.mark && r.four == o.four && r.six == o.six && r.addr4 == o.addr4 && r.addr6 == o.addr6 &&
		slices.Equal(r.private, o.private)
}

func (w *meshRule) equal(o *meshRule) bool {
	return w.target == o.target && w.balance == o.balance && w.relayed == o.relayed && slices.Equal(w.four, o.four) && slices.Equal(w.six, o.six) &&
		slices.Equal(w.on, o.on) && slices.Equal(w.devices, o.devices) && slices.Equal(w.deviceOn, o.deviceOn)
}

// sameShape reports whether the two differ in backends alone, and by none that
// one lacks.
func (w *meshRule) sameShape(o *meshRule) bool {
	a, b := *w, *o
	a.four, b.four, a.six, b.six = nil, nil, nil, nil
	return a.equal(&b) && (len(w.four) == 0) == (len(o.four) == 0) && (len(w.six) == 0) == (len(o.six) == 0)
}

// place gives each backend its numbers, as far as possible those that it has in
// have, which may be nil.
func (w *meshRule) place(have *meshRule) {
	if have == nil {
		have = &meshRule{}
	}
	w.slots4, w.slots6 = spread(have.slots4, w.four, w.balance), spread(have.slots6, w.six, w.balance)
}

func (w *meshRule) slots(v6 bool) []netip.Addr {
	if v6 {
		return w.slots6
	}
	return w.slots4
}

func (w *meshRule) restricted() bool { return len(w.on) > 0 || len(w.devices) > 0 }

// held are the addresses of the host at which a port is to be held.
func (w *meshRule) held(host map[string][]netip.Addr) []netip.Addr {
	if !w.restricted() {
		return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	var l []netip.Addr
	for device, addrs := range host {
		for _, a := range addrs {
			if slices.Contains(w.devices, device) || slices.ContainsFunc(w.on, func(p netip.Prefix) bool { return p.Contains(a) }) {
				l = append(l, a)
			}
		}
	}
	slices.SortFunc(l, netip.Addr.Compare)
	return slices.Compact(l)
}

// backends of a family.
func (w *meshRule) backends(v6 bool) []netip.Addr {
	if v6 {
		return w.six
	}
	return w.four
}

// Sizes of the table from hashes of clients to backends. A client moves when its
// backend does, or when their number passes the limit.
const (
	meshBuckets      = 1024
	meshBucketsLarge = 8192
	meshManyBackends = 128
)

// spread returns the backends by number: a random number, or the hash of a
// client's address, chooses one. For random numbers each has one, which it keeps,
// but for those that come to fill a gap. For hashes, each number is given to the
// backend that scores highest with it, so that of all nodes each gives a client
// the same one, and a change moves only the clients of what has gone, and a fair
// share to what has come.
func spread(have, backends []netip.Addr, b network.Balance) []netip.Addr {
	if b != network.BalanceClient || len(backends) < 2 {
		return keepPlaces(have, backends)
	}
	n := meshBuckets
	if len(backends) > meshManyBackends {
		n = meshBucketsLarge
	}
	l := make([]netip.Addr, n)
	seeds := make([]uint64, len(backends))
	for i, a := range backends {
		h := fnv.New64a()
		_, _ = h.Write(a.AsSlice())
		seeds[i] = h.Sum64()
	}
	for i := range l {
		best := uint64(0)
		for j, a := range backends {
			if s := mix(seeds[j] + uint64(i)*0x9e3779b97f4a7c15); s >= best {
				best, l[i] = s, a
			}
		}
	}
	return l
}

// keepPlaces orders backends so that as few as possible are elsewhere than in
// have.
func keepPlaces(have, backends []netip.Addr) []netip.Addr {
	l := make([]netip.Addr, len(backends))
	free := make(map[netip.Addr]bool, len(backends))
	for _, a := range backends {
		free[a] = true
	}
	for i := range min(len(l), len(have)) {
		if free[have[i]] {
			l[i] = have[i]
			delete(free, have[i])
		}
	}
	i := 0
	for _, a := range backends {
		if !free[a] {
			continue
		}
		for l[i].IsValid() {
			i++
		}
		l[i] = a
	}
	return l
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// chainOf names a port's chain. One of a port that is published on some
// addresses only has another before it.
func chainOf(k network.MeshKey, v6 bool) string {
	return fmt.Sprintf("%s-%d-%s", k.Protocol, k.Port, familyDigit(v6))
}

func familyDigit(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}
