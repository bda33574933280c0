package linux

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

const (
	// vipTable is the table in each sandbox, one a family.
	vipTable = "legion_vips"
	vipMap   = "vips"
	// establishedFor is how long the kernel remembers an idle connection, in
	// seconds: for ever, to those who wait for it.
	establishedFor = "2147483"
)

// nftBalancer is the driver for BalancerNFTables: a map from virtual addresses to
// chains in each sandbox, each chain with one rule. A sandbox's changes are one
// transaction.
type nftBalancer struct {
	p     *Plane
	boxes map[string]*nftBox
}

// nftBox is what a sandbox's table has; owned by one goroutine at a time.
type nftBox struct {
	vipBox
	vips map[netip.Addr]*network.Balancer
	mine map[netip.Addr]netip.Addr // what this sandbox has been given, with BalanceClient
	gen  uint32                    // of the sandbox's rule set, after our last change
}

func newNFTBalancer(p *Plane) *nftBalancer {
	return &nftBalancer{p: p, boxes: map[string]*nftBox{}}
}

// found implements balancerDriver: it can't tell, and leaves what is there.
func (b *nftBalancer) found(map[string]bool) (map[network.BalancerKey]*network.Balancer, error) {
	return map[network.BalancerKey]*network.Balancer{}, nil
}

// apply implements balancerDriver.
func (b *nftBalancer) apply(c *balancerChange) error {
	for _, id := range c.leave {
		delete(b.boxes, id)
	}
	if c.all {
		b.forgetGone(c.boxes)
	}
	touched := map[string]*nftBox{}
	networks := map[string]bool{}
	for _, p := range c.put {
		networks[p.Network] = true
	}
	for _, k := range c.drop {
		networks[k.Network] = true
	}
	for id, x := range b.boxes {
		for _, n := range x.networks {
			if networks[n] {
				touched[id] = x
			}
		}
	}
	for _, x := range c.boxes {
		old := b.boxes[x.id]
		n := &nftBox{vipBox: *x, mine: map[netip.Addr]netip.Addr{}}
		if old != nil {
			n.vips, n.mine, n.gen = old.vips, old.mine, old.gen
		}
		b.boxes[x.id], touched[x.id] = n, n
	}
	return b.each(touched, func(x *nftBox) error { return b.set(x, c) })
}

func (b *nftBalancer) forgetGone(boxes []*vipBox) {
	there := map[string]bool{}
	for _, x := range boxes {
		there[x.id] = true
	}
	for id := range b.boxes {
		if !there[id] {
			delete(b.boxes, id)
		}
	}
}

// each runs f for some sandboxes, several at a time.
func (b *nftBalancer) each(boxes map[string]*nftBox, f func(*nftBox) error) error {
	work := make(chan *nftBox)
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for range min(b.p.workers, len(boxes)) {
		wg.Go(func() {
			for x := range work {
				if err := f(x); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("sandbox %s: %w", x.id, err))
					mu.Unlock()
				}
			}
		})
	}
	for _, x := range boxes {
		work <- x
	}
	close(work)
	wg.Wait()
	return errors.Join(errs...)
}

// set makes a sandbox's table what it should be.
func (b *nftBalancer) set(x *nftBox, c *balancerChange) error {
	if c.narrow && !bound(x.path) {
		return nil
	}
	want := map[netip.Addr]*network.Balancer{}
	unknown := false
	for i := len(x.networks) - 1; i >= 0; i-- { // where networks overlap, the first counts
		unknown = unknown || c.unknown[x.networks[i]]
		for k, p := range c.now.Balancers {
			if k.Network == x.networks[i] {
				want[k.Address] = p
			}
		}
	}
	ns, err := netns.GetFromPath(x.path)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	conn, err := openFilter(int(ns))
	if err != nil {
		return err
	}
	have := x.vips
	if have != nil && c.all && !unchanged(int(ns), x.gen) {
		have = nil
	}
	if have == nil && unknown && len(want) == 0 {
		return nil // of an earlier daemon
	}
	x.vips = nil // until it has been done
	if have == nil {
		if err := b.begin(conn, x.path); err != nil {
			return err
		}
	}
	gone := b.write(conn, x, have, want)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write the table of service addresses: %w", err)
	}
	x.gen, _ = generationIn(int(ns)) // not known: written anew by the next look
	x.vips = want
	return b.p.forgetVIPFlows(ns, x.path, gone)
}

func unchanged(ns int, gen uint32) bool {
	g, err := generationIn(ns)
	return err == nil && g == gen
}

// begin empties the tables, and lets idle connections live.
func (b *nftBalancer) begin(c *filterConn, path string) error {
	if err := emptyTables(c); err != nil {
		return err
	}
	return b.p.onThread(func() error {
		if err := inNamespace(path); err != nil {
			return err
		}
		// Kernels that have not begun to track connections here have no such file.
		err := writeSysctl("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", establishedFor)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}

// emptyTables puts empty tables in the place of those that may be there.
func emptyTables(c *filterConn) error {
	for _, f := range families() {
		t := c.AddTable(&nftables.Table{Family: f, Name: vipTable})
		c.DelTable(t)
		w := &vipWriter{c: c, t: c.AddTable(t)}
		if err := w.base(); err != nil {
			return err
		}
	}
	return nil
}

func families() []nftables.TableFamily {
	return []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
}

// write writes what differs, and returns the backends that some addresses no
// longer lead to.
func (b *nftBalancer) write(c *filterConn, x *nftBox, have, want map[netip.Addr]*network.Balancer) map[[2]netip.Addr]bool {
	gone := map[[2]netip.Addr]bool{}
	for a, p := range want {
		old := have[a]
		if old != nil && old.Equal(p) {
			continue
		}
		w := newVIPWriter(c, a)
		w.put(a, b.list(x, p), old == nil)
		if old != nil {
			for _, e := range old.Backends {
				gone[[2]netip.Addr{a, e}] = true
			}
			for _, e := range p.Backends {
				delete(gone, [2]netip.Addr{a, e})
			}
		}
	}
	for a, old := range have {
		if want[a] != nil {
			continue
		}
		newVIPWriter(c, a).drop(a)
		delete(x.mine, a)
		for _, e := range old.Backends {
			gone[[2]netip.Addr{a, e}] = true
		}
	}
	return gone
}

// list is what a sandbox's connections are spread over. With BalanceClient it is
// one backend, for as long as that serves: the one for which a hash is highest,
// so that it is also the same after a restart, unless there are new ones.
func (b *nftBalancer) list(x *nftBox, p *network.Balancer) []netip.Addr {
	if p.Balance != network.BalanceClient || len(p.Backends) == 0 {
		delete(x.mine, p.Address)
		return p.Backends
	}
	var best netip.Addr
	var most uint64
	for _, a := range p.Backends {
		if a == x.mine[p.Address] {
			return []netip.Addr{a}
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(x.id + " " + a.String()))
		if n := h.Sum64(); !best.IsValid() || n > most {
			best, most = a, n
		}
	}
	x.mine[p.Address] = best
	return []netip.Addr{best}
}

// remove implements balancerDriver. The tables stay, empty: without them the
// kernel would forget where connections lead that are under way.
func (b *nftBalancer) remove(boxes []*vipBox) error {
	clear(b.boxes)
	all := map[string]*nftBox{}
	for _, x := range boxes {
		all[x.id] = &nftBox{vipBox: *x}
	}
	return b.each(all, func(x *nftBox) error {
		ns, err := netns.GetFromPath(x.path)
		if err != nil {
			return err
		}
		defer ns.Close() //nolint:errcheck // nothing was written
		c, err := openFilter(int(ns))
		if err != nil {
			return err
		}
		if _, err := c.ListTableOfFamily(vipTable, nftables.TableFamilyIPv4); err != nil {
			return nil //nolint:nilerr // there is none
		}
		if err := emptyTables(c); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("empty the table of service addresses: %w", err)
		}
		return nil
	})
}

func (b *nftBalancer) close() error { return nil }

// vipFlows selects flows of UDP from an address of a service to a backend.
type vipFlows map[[2]netip.Addr]bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (v vipFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	to, ok := netip.AddrFromSlice(f.Forward.DstIP)
	backend, ok2 := netip.AddrFromSlice(f.Reverse.SrcIP)
	return ok && ok2 && f.Forward.Protocol == unix.IPPROTO_UDP && v[[2]netip.Addr{to.Unmap(), backend.Unmap()}]
}

// forgetVIPFlows has flows of UDP find a backend anew: while their socket sends,
// they never end. It takes tens of milliseconds, so it isn't done where nothing
// is tracked.
func (p *Plane) forgetVIPFlows(ns netns.NsHandle, path string, gone map[[2]netip.Addr]bool) error {
	four, six := false, false
	for k := range gone {
		four, six = four || k[0].Is4(), six || k[0].Is6()
	}
	if len(gone) == 0 || !p.tracks(path) {
		return nil
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	for _, f := range []struct {
		family netlink.InetFamily
		any    bool
	}{{netlink.FAMILY_V4, four}, {netlink.FAMILY_V6, six}} {
		if !f.any {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, f.family, vipFlows(gone)); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("forget flows to tasks that are gone: %w", err)
		}
	}
	return nil
}

// tracks reports whether the kernel tracks any connection in a namespace, as far
// as it tells.
func (p *Plane) tracks(path string) bool {
	some := true
	_ = p.onThread(func() error {
		if err := inNamespace(path); err != nil {
			return err
		}
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		some = err != nil || strings.TrimSpace(string(b)) != "0"
		return nil
	})
	return some
}
