package linux

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// A virtual address is also one of the overlay's bridge, on every node. So it
// answers to ping, and what isn't a connection by a socket that is balanced is
// refused here at once, and leaves for nobody else.

// bridgeVIPs are the virtual addresses that a bridge has.
type bridgeVIPs struct {
	there map[netip.Addr]bool
	want  map[netip.Addr]bool
}

// vipAddress is how netlink wants one: nobody's choice for what the namespace
// itself sends, and marked so that isVIP knows it.
func vipAddress(a netip.Addr) *netlink.Addr {
	r := address(netip.PrefixFrom(a, a.BitLen()))
	if a.Is4() {
		r.Scope = unix.RT_SCOPE_HOST
	} else {
		r.ValidLft = math.MaxUint32 // for ever, and out of use: deprecated
		r.Flags |= unix.IFA_F_NOPREFIXROUTE
	}
	return r
}

func isVIP(a *netlink.Addr) bool {
	ones, bits := a.Mask.Size()
	return ones == bits && (bits == 32 && a.Scope == unix.RT_SCOPE_HOST || bits == 128 && a.Flags&unix.IFA_F_DEPRECATED != 0)
}

// setVIPs makes the bridges' addresses what they should be, and reports whether
// they are.
func (b *balancing) setVIPs(c *balancerChange, ch *network.Changes, f *failures) (ok bool) {
	touched := map[string]bool{}
	if c.all {
		for id := range c.now.Overlays {
			touched[id] = true
		}
	}
	for _, o := range ch.PutOverlays {
		touched[o.ID] = true
		delete(b.vips, o.ID)
	}
	for _, id := range ch.DropOverlays {
		delete(b.vips, id)
	}
	for _, p := range c.put {
		touched[p.Network] = true
	}
	for _, k := range c.drop {
		touched[k.Network] = true
	}
	if len(touched) == 0 {
		return true
	}
	ok = true
	for id := range touched {
		if v := b.vips[id]; v == nil {
			b.vips[id] = &bridgeVIPs{want: map[netip.Addr]bool{}}
		} else {
			clear(v.want)
		}
	}
	for k := range c.now.Balancers {
		if touched[k.Network] {
			b.vips[k.Network].want[k.Address] = true
		}
	}
	for id := range touched {
		if c.now.Overlays[id] == nil || !bound(b.p.overlayPath(id)) || c.unknown[id] && len(b.vips[id].want) == 0 {
			delete(b.vips, id)
			continue
		}
		if err := b.p.putVIPs(id, b.vips[id]); err != nil {
			f.add(network.BalancersItem, fmt.Errorf("addresses of services in overlay %s: %w", id, err))
			delete(b.vips, id)
			ok = false
		}
	}
	return ok
}

func (p *Plane) putVIPs(id string, v *bridgeVIPs) error {
	if v.there != nil && len(v.there) == len(v.want) {
		same := true
		for a := range v.want {
			same = same && v.there[a]
		}
		if same {
			return nil
		}
	}
	h, err := p.overlayHandle(id)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(overlayBridge)
	if err != nil {
		return err
	}
	if v.there == nil {
		if v.there, err = readVIPs(h, l); err != nil {
			return err
		}
	}
	for a := range v.want {
		if v.there[a] {
			continue
		}
		if err := h.AddrAdd(l, vipAddress(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w", a, err)
		}
		v.there[a] = true
	}
	for a := range v.there {
		if v.want[a] {
			continue
		}
		if err := h.AddrDel(l, vipAddress(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("%s: %w", a, err)
		}
		delete(v.there, a)
	}
	return nil
}

func readVIPs(h *netlink.Handle, l netlink.Link) (map[netip.Addr]bool, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	r := map[netip.Addr]bool{}
	for i := range list {
		if isVIP(&list[i]) {
			r[prefix(list[i].IPNet).Addr()] = true
		}
	}
	return r, nil
}

// clearVIPs takes all of them away.
func (b *balancing) clearVIPs(now *network.Config) error {
	var errs []error
	for id := range now.Overlays {
		if bound(b.p.overlayPath(id)) {
			errs = append(errs, b.p.putVIPs(id, &bridgeVIPs{}))
		}
	}
	clear(b.vips)
	return errors.Join(errs...)
}
