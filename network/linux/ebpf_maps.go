package linux

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

const (
	// mapBatch is how many entries are read or written by one call.
	mapBatch = 4096
	// mapTries bounds how often entries that the kernel has no memory for at that
	// moment are tried again.
	mapTries = 20
)

// apply implements balancerDriver.
func (b *ebpfBalancer) apply(c *balancerChange) error {
	if c.all {
		return b.applyAll(c)
	}
	for _, p := range c.put {
		b.tables.putService(p)
	}
	for _, k := range c.drop {
		b.tables.dropService(k)
	}
	if err := b.enter(c.boxes); err != nil {
		return err
	}
	for _, id := range c.leave {
		b.tables.dropBox(id)
	}
	return b.write()
}

// applyAll compares what is in the maps with what should be.
func (b *ebpfBalancer) applyAll(c *balancerChange) error {
	if !b.intact() {
		b.p.log.Warn("network: programs of service addresses are not attached as they should be, and are put back")
		next, err := openEBPF(b.p, b.places)
		if err != nil {
			return err
		}
		_ = b.close()
		*b = *next
	}
	b.tables = newBalancerTables()
	for _, p := range c.now.Balancers {
		b.tables.putService(p)
	}
	if err := b.enter(c.boxes); err != nil {
		return err
	}
	if err := b.compare(); err != nil {
		return err
	}
	if err := b.write(); err != nil {
		return err
	}
	return b.tidy()
}

func (b *ebpfBalancer) enter(boxes []*vipBox) error {
	cookies, err := b.p.cookies(boxes)
	if err != nil {
		return err
	}
	for i, x := range boxes {
		b.tables.putBox(x, cookies[i])
	}
	return nil
}

// compare reads the maps.
func (b *ebpfBalancer) compare() error {
	t := b.tables
	return errors.Join(compareMap(b.maps["netns"], t.netns), compareMap(b.maps["vips"], t.vips),
		compareMap(b.maps["backends"], t.backends), compareMembers(b.maps["members"], t.members))
}

// write makes the maps what they should be: backends before what leads to them,
// and the other way round. If it fails, what is there is not known.
func (b *ebpfBalancer) write() error {
	t := b.tables
	for _, step := range []func() error{
		func() error { return putMembers(b.maps["members"], t.members) },
		func() error { return putMap(b.maps["backends"], t.backends.put) },
		func() error { return putMap(b.maps["vips"], t.vips.put) },
		func() error { return putMap(b.maps["netns"], t.netns.put) },
		func() error { return dropMap(b.maps["netns"], t.netns.drop) },
		func() error { return dropMap(b.maps["vips"], t.vips.drop) },
		func() error { return dropMap(b.maps["backends"], t.backends.drop) },
		func() error { return dropMap(b.maps["members"], t.members.drop) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	t.netns.done()
	t.vips.done()
	t.backends.done()
	t.members.done()
	return nil
}

// readMap reads all of a map.
func readMap[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	r := map[K]V{}
	keys, values := make([]K, mapBatch), make([]V, mapBatch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			r[keys[i]] = values[i]
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return r, nil // that was all
		}
		if err != nil {
			return nil, fmt.Errorf("read map %s: %w", m, err)
		}
	}
}

func compareMap[K, V comparable](m *ebpf.Map, t *table[K, V]) error {
	have, err := readMap[K, V](m)
	if err == nil {
		t.compare(have)
	}
	return err
}

// compareMembers leaves the counts alone.
func compareMembers(m *ebpf.Map, t *table[memberKey, present]) error {
	counts, err := readMap[memberKey, int64](m)
	if err != nil {
		return err
	}
	have := make(map[memberKey]present, len(counts))
	for k := range counts {
		have[k] = present{}
	}
	t.compare(have)
	return nil
}

func putMembers(m *ebpf.Map, t *table[memberKey, present]) error {
	put := make(map[memberKey]int64, len(t.put))
	for k := range t.put {
		put[k] = 0
	}
	return putMap(m, put)
}

func putMap[K comparable, V any](m *ebpf.Map, put map[K]V) error {
	keys, values := make([]K, 0, len(put)), make([]V, 0, len(put))
	for k, v := range put {
		keys, values = append(keys, k), append(values, v)
	}
	for tries := 0; len(keys) > 0; {
		n := min(len(keys), mapBatch)
		done, err := m.BatchUpdate(keys[:n], values[:n], nil)
		if errors.Is(err, unix.ENOMEM) && tries < mapTries {
			tries++
			err = nil
		}
		if err != nil {
			return fmt.Errorf("write map %s: %w", m, fullError(err))
		}
		keys, values = keys[done:], values[done:]
	}
	return nil
}

// fullError says E2BIG in words.
func fullError(err error) error {
	if errors.Is(err, unix.E2BIG) {
		return errors.New("it is full: this node has more service addresses or tasks behind them than it can balance")
	}
	return err
}

func dropMap[K comparable](m *ebpf.Map, drop map[K]bool) error {
	for keys := slices.Collect(maps.Keys(drop)); len(keys) > 0; {
		n := min(len(keys), mapBatch)
		done, err := m.BatchDelete(keys[:n], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			done, err = done+1, nil // gone already
		}
		if err != nil {
			return fmt.Errorf("remove from map %s: %w", m, err)
		}
		keys = keys[done:]
	}
	return nil
}

// found implements balancerDriver.
func (b *ebpfBalancer) found(networks map[string]bool) (map[network.BalancerKey]*network.Balancer, error) {
	r := map[network.BalancerKey]*network.Balancer{}
	vips, err := readMap[vipKey, vipValue](b.maps["vips"])
	if err != nil {
		return nil, err
	}
	backends, err := readMap[backendKey, address16](b.maps["backends"])
	if err != nil {
		return nil, err
	}
	for key, v := range vips {
		for n := range networks {
			k := network.BalancerKey{Network: n, Address: netip.AddrFrom16(key.VIP).Unmap()}
			if serviceID(k) != v.Service {
				continue
			}
			f := &network.Balancer{BalancerKey: k, Balance: balanceOf(v.Balance)}
			for i := range v.Backends {
				if a, ok := backends[backendKey{Service: v.Service, Generation: v.Generation, Slot: i}]; ok {
					f.Backends = append(f.Backends, netip.AddrFrom16(a).Unmap())
				}
			}
			slices.SortFunc(f.Backends, netip.Addr.Compare)
			r[k] = f
		}
	}
	return r, nil
}

// cookies reads the kernel's numbers of sandboxes' namespaces, which are never
// given twice.
func (p *Plane) cookies(boxes []*vipBox) ([]uint64, error) {
	if len(boxes) == 0 {
		return nil, nil
	}
	r := make([]uint64, len(boxes))
	return r, p.onThread(func() error {
		for i, x := range boxes {
			if err := inNamespace(x.path); err != nil {
				return err
			}
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			r[i], err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
			_ = unix.Close(s)
			if err != nil {
				return fmt.Errorf("read the number of namespace %s: %w", x.path, err)
			}
		}
		return nil
	})
}
