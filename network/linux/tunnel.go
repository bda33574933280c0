package linux

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// ntfSticky keeps an entry of a bridge where it is, whoever else sends with its
// address (NTF_STICKY).
const ntfSticky = 1 << 6

var errNoUnderlay = errors.New("this node does not know yet by which of its addresses other nodes reach it")

// putTunnel makes an overlay's tunnel what it should be; without peers there is
// none. have is what was there, nil if that is not known.
func (p *Plane) putTunnel(have, o *network.Overlay, u network.Underlay) error {
	h, err := p.overlayHandle(o.ID)
	if err != nil {
		return err
	}
	defer h.Close()
	if o.Encrypted {
		return p.putCrypt(h, o, u)
	}
	if err := p.keeper.DropTap(o.ID); err != nil {
		return err
	}
	if len(o.Peers) == 0 {
		p.expectTunnel(o.ID, "", nil)
		return dropTunnel(h)
	}
	if !u.Local.IsValid() || u.Port == 0 {
		return errNoUnderlay
	}
	l, err := h.LinkByName(overlayTunnel)
	if err == nil && !sameTunnel(l, o, u) {
		if err = h.LinkDel(l); err == nil {
			err = netlink.LinkNotFoundError{}
		}
	}
	switch {
	case err == nil && have != nil:
	case err == nil:
		have = &network.Overlay{}
		if have.Peers, err = readPeers(h, l); err != nil {
			return err
		}
	case isNotFound(err):
		have = &network.Overlay{}
		if l, err = p.newTunnel(h, o, u); err != nil {
			return err
		}
	default:
		return err
	}
	p.expectTunnel(o.ID, overlayTunnel, o.Peers)
	return changePeers(h, have.Peers, o.Peers, func(peer network.Peer) []*netlink.Neigh { return entries(l, peer) })
}

func dropTunnel(h *netlink.Handle) error {
	l, err := h.LinkByName(overlayTunnel)
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove the tunnel: %w", err)
	}
	return nil
}

// sameTunnel reports whether a device is the tunnel that is wanted, and in use.
func sameTunnel(l netlink.Link, o *network.Overlay, u network.Underlay) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && uint32(v.VxlanId) == o.VNI && v.Port == int(u.Port) && v.MTU == o.MTU && v.SrcAddr.Equal(u.Local.AsSlice()) &&
		v.Flags&net.FlagUp != 0 && v.MasterIndex != 0
}

// newTunnel makes the VXLAN device in the host's namespace, where its socket
// stays, and moves it to the overlay's.
func (p *Plane) newTunnel(h *netlink.Handle, o *network.Overlay, u network.Underlay) (netlink.Link, error) {
	host, err := p.handle()
	if err != nil {
		return nil, err
	}
	defer p.put(host)
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = fmt.Sprintf("legvx%06x", o.VNI), o.MTU
	v := &netlink.Vxlan{
		LinkAttrs: a, VxlanId: int(o.VNI), SrcAddr: u.Local.AsSlice(), Port: int(u.Port), Learning: false, Proxy: true, L2miss: false, L3miss: false,
	}
	err = host.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) { // left half-made by a daemon that was killed
		if left, found := host.LinkByName(a.Name); found == nil {
			if err = host.LinkDel(left); err == nil {
				err = host.LinkAdd(v)
			}
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("VXLAN id %d with port %d is in use on this host, by another node or another engine: %w", o.VNI, u.Port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("make the VXLAN device: %w", err)
	}
	l, err := host.LinkByName(a.Name)
	if err == nil {
		if err = p.moveTunnel(host, h, l, o); err != nil {
			_ = host.LinkDel(l) // it is still there if it could not be moved
		}
	}
	if err != nil {
		return nil, fmt.Errorf("set up the VXLAN device: %w", err)
	}
	return h.LinkByName(overlayTunnel)
}

func (p *Plane) moveTunnel(host, h *netlink.Handle, l netlink.Link, o *network.Overlay) error {
	ns, err := os.Open(p.overlayPath(o.ID))
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	if err := host.LinkSetNsFd(l, int(ns.Fd())); err != nil {
		return err
	}
	inside, err := h.LinkByName(l.Attrs().Name)
	if err != nil {
		return err
	}
	bridge, err := h.LinkByName(overlayBridge)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return h.LinkSetName(inside, overlayTunnel) },
		func() error { return p.inSandbox(p.overlayPath(o.ID), tunnelIPv6) },
		func() error { return h.LinkSetMaster(inside, bridge) },
		func() error { return h.LinkSetLearning(inside, false) },
		func() error { return h.LinkSetUp(inside) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// tunnelIPv6 turns on IPv6 for a tunnel's device, as neighbours need it. The thread
// is in the overlay's namespace.
func tunnelIPv6() error {
	err := writeSysctl("/proc/sys/net/ipv6/conf/"+overlayTunnel+"/disable_ipv6", "0")
	if errors.Is(err, os.ErrNotExist) { // the kernel has no IPv6
		return nil
	}
	return err
}

// changePeers makes the static entries of a tunnel those of the peers.
func changePeers(h *netlink.Handle, have, want []network.Peer, entries func(network.Peer) []*netlink.Neigh) error {
	stays := make(map[network.Peer]bool, len(want))
	macs := make(map[string]bool, len(want))
	for _, p := range want {
		stays[p] = true
		macs[p.MAC().String()] = true
	}
	known := make(map[network.Peer]bool, len(have))
	for _, p := range have {
		if known[p] = true; stays[p] || !p.Address.IsValid() && !p.Address6.IsValid() {
			continue
		}
		for _, n := range entries(p) {
			// One that has moved to another node is replaced below.
			if n.Flags != 0 && macs[p.MAC().String()] {
				continue
			}
			if err := h.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove %s at %s: %w", p.Address, p.Node, err)
			}
		}
	}
	for _, p := range want {
		if known[p] {
			continue
		}
		for _, n := range entries(p) {
			if err := h.NeighSet(n); err != nil {
				return fmt.Errorf("add %s at %s: %w", p.Address, p.Node, err)
			}
		}
	}
	return nil
}

// entries of a peer: where its frames go (forwarding database of the tunnel), that
// they go through the tunnel (that of the bridge), and who has its address
// (neighbours).
func entries(l netlink.Link, p network.Peer) []*netlink.Neigh {
	mac, i := p.MAC(), l.Attrs().Index
	all := []*netlink.Neigh{
		{LinkIndex: i, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: p.Node.AsSlice()},
		{LinkIndex: i, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | ntfSticky, State: netlink.NUD_NOARP, HardwareAddr: mac},
	}
	for _, a := range []netip.Addr{p.Address, p.Address6} {
		if a.IsValid() {
			all = append(all, &netlink.Neigh{LinkIndex: i, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: a.AsSlice()})
		}
	}
	return all
}

// readPeers reads the peers back from a tunnel's entries.
func readPeers(h *netlink.Handle, l netlink.Link) ([]network.Peer, error) {
	fdb, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(l.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list the tunnel's forwarding database: %w", err)
	}
	byMAC, forwarded := map[string]network.Peer{}, map[string]bool{}
	for _, n := range fdb {
		if n.Flags&netlink.NTF_SELF == 0 && n.State&netlink.NUD_NOARP != 0 {
			forwarded[n.HardwareAddr.String()] = true
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.Flags&netlink.NTF_SELF != 0 {
			byMAC[n.HardwareAddr.String()] = network.Peer{Node: a.Unmap()}
		}
	}
	maps.DeleteFunc(byMAC, func(mac string, _ network.Peer) bool { return !forwarded[mac] })
	if err := readNeighbours(h, l, byMAC); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(byMAC), network.Peer.Compare), nil
}

// readNeighbours fills in the addresses that a device has static neighbours for.
func readNeighbours(h *netlink.Handle, l netlink.Link, byMAC map[string]network.Peer) error {
	neighbours, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(l.Attrs().Index, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("list a tunnel's neighbours: %w", err)
	}
	for _, n := range neighbours {
		a, ok := netip.AddrFromSlice(n.IP)
		p, known := byMAC[n.HardwareAddr.String()]
		if !ok || !known || n.State&netlink.NUD_PERMANENT == 0 || n.Family == unix.AF_BRIDGE {
			continue
		}
		if a = a.Unmap(); a.Is4() {
			p.Address = a
		} else {
			p.Address6 = a
		}
		byMAC[n.HardwareAddr.String()] = p
	}
	return nil
}

// observeTunnel fills in what an overlay's tunnel says of it.
func (p *Plane) observeTunnel(h *netlink.Handle, links map[string]netlink.Link, o *network.Overlay, u network.Underlay) (err error) {
	plain, protected := links[overlayTunnel], links[overlayCrypt]
	if o.Encrypted && protected != nil && plain == nil {
		if !p.sameCrypt(protected, o) {
			o.VNI = 0 // another one
		}
		o.Peers, err = p.readCryptPeers(h, protected, links[overlayBridge], o.ID)
		return err
	}
	if plain == nil {
		return nil
	}
	if o.Encrypted || !sameTunnel(plain, o, u) {
		o.VNI = 0 // another tunnel
	}
	o.Peers, err = readPeers(h, plain)
	return err
}
