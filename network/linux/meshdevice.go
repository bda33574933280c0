package linux

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// meshPort is the end of the pair on the ingress network's bridge.
const meshPort = "mesh0"

// meshLink is an address of the host's end that means nothing: what comes by a
// device without any is dropped where the kernel filters by the way back, however
// loosely.
const meshLink = "169.254.1.2/32"

// meshMAC is the address that the other nodes know this one by in the ingress
// network.
func meshMAC(m *network.Mesh) net.HardwareAddr {
	var p network.Peer
	for _, a := range m.Addresses {
		if a.Addr().Is4() {
			p.Address = a.Addr()
		} else {
			p.Address6 = a.Addr()
		}
	}
	return p.MAC()
}

// putMeshDevice joins the host to the ingress network's bridge. The host has none
// of the network's addresses, and no route but for what is marked: the network's subnet may
// be one that the host knows elsewhere.
func (p *Plane) putMeshDevice(m *network.Mesh, o *network.Overlay) error {
	if p.mesh.device.Equal(m) && p.mesh.mtu == o.MTU {
		return nil
	}
	p.mesh.device = nil
	if len(m.Addresses) == 0 {
		return errors.New("the managers have given this node no address in the ingress network yet")
	}
	if !slices.ContainsFunc(m.Addresses, func(a netip.Prefix) bool { return a.Addr().Is4() }) {
		return errors.New("an ingress network without IPv4 is not served: connections are told apart by endpoints' IPv4 addresses")
	}
	h, err := p.handle()
	if err != nil {
		return err
	}
	defer p.put(h)
	err = p.furnishMeshDevice(h, m, o)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) || isNotFound(err) {
		err = p.furnishMeshDevice(h, m, o) // it was there for a moment: when one end of a pair is removed, the other goes next
	}
	if err != nil {
		return err
	}
	p.mesh.device, p.mesh.mtu = m, o.MTU
	return nil
}

// furnishMeshDevice makes the device and gives it what it needs.
func (p *Plane) furnishMeshDevice(h *netlink.Handle, m *network.Mesh, o *network.Overlay) error {
	l, err := p.meshPair(h, m, o)
	if err != nil {
		return fmt.Errorf("join the host to the ingress network: %w", err)
	}
	if err := p.meshSysctls(m); err != nil {
		return err
	}
	if err := h.AddrReplace(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(meshLink)), Scope: int(netlink.SCOPE_LINK)}); err != nil {
		return fmt.Errorf("give %s its address: %w", l.Attrs().Name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", l.Attrs().Name, err)
	}
	return p.meshRoutes(h, l, m)
}

// meshPair makes the pair, or makes the one that is there what it should be.
func (p *Plane) meshPair(h *netlink.Handle, m *network.Mesh, o *network.Overlay) (netlink.Link, error) {
	inside, err := p.overlayHandle(o.ID)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	name := p.meshDevice()
	l, err := h.LinkByName(name)
	if err == nil {
		if owner, kind, _ := ours(l.Attrs().Alias); l.Type() != "veth" || l.Attrs().Alias != "" && (owner != p.owner || kind != "mesh") {
			return nil, fmt.Errorf("device %s exists and is not ours: remove it", name)
		}
		port, found := inside.LinkByName(meshPort)
		if found != nil || port.Attrs().ParentIndex != l.Attrs().Index || l.Attrs().ParentIndex != port.Attrs().Index ||
			l.Attrs().Alias != p.alias("mesh", o.ID) {
			if err = h.LinkDel(l); err == nil {
				err = netlink.LinkNotFoundError{}
			}
		}
	}
	if isNotFound(err) {
		l, err = p.newMeshPair(h, inside, m, o)
	}
	if err != nil {
		return nil, err
	}
	port, err := inside.LinkByName(meshPort)
	if err != nil {
		return nil, err
	}
	bridge, err := inside.LinkByName(overlayBridge)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		done bool
		do   func() error
	}{
		{bytes.Equal(l.Attrs().HardwareAddr, meshMAC(m)), func() error { return h.LinkSetHardwareAddr(l, meshMAC(m)) }},
		{l.Attrs().MTU == o.MTU, func() error { return h.LinkSetMTU(l, o.MTU) }},
		{port.Attrs().MTU == o.MTU, func() error { return inside.LinkSetMTU(port, o.MTU) }},
		{port.Attrs().MasterIndex == bridge.Attrs().Index, func() error { return inside.LinkSetMaster(port, bridge) }},
		{port.Attrs().Flags&net.FlagUp != 0, func() error { return inside.LinkSetUp(port) }},
	} {
		if step.done {
			continue
		}
		if err := step.do(); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func (p *Plane) newMeshPair(h, inside *netlink.Handle, m *network.Mesh, o *network.Overlay) (netlink.Link, error) {
	if left, err := inside.LinkByName(meshPort); err == nil { // the other end is another's, or of another name
		if err := inside.LinkDel(left); err != nil {
			return nil, err
		}
	}
	ns, err := os.Open(p.overlayPath(o.ID))
	if err != nil {
		return nil, err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr = p.meshDevice(), o.MTU, meshMAC(m)
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: meshPort, PeerNamespace: netlink.NsFd(ns.Fd())}); err != nil {
		return nil, err
	}
	l, err := h.LinkByName(a.Name)
	if err != nil {
		return nil, err
	}
	return l, h.LinkSetAlias(l, p.alias("mesh", o.ID))
}

// meshSysctls: what is sent from 127.0.0.1 may go there (a rule translates the
// address), answers come from addresses that the host routes elsewhere, and
// nobody there learns of the host's addresses.
func (p *Plane) meshSysctls(m *network.Mesh) error {
	v6 := "1"
	for _, a := range m.Addresses {
		if a.Addr().Is6() {
			v6 = "0"
		}
	}
	dev := p.meshDevice()
	return p.inHost(func() error {
		for _, s := range [][2]string{{"route_localnet", "1"}, {"rp_filter", "2"}, {"arp_ignore", "1"}, {"send_redirects", "0"}, {"accept_redirects", "0"}} {
			if err := writeSysctl("/proc/sys/net/ipv4/conf/"+dev+"/"+s[0], s[1]); err != nil {
				return err
			}
		}
		for _, s := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}, {"accept_redirects", "0"}, {"disable_ipv6", v6}} {
			if err := writeSysctl("/proc/sys/net/ipv6/conf/"+dev+"/"+s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// meshRoutes has what is marked go to the device, and nothing else.
func (p *Plane) meshRoutes(h *netlink.Handle, l netlink.Link, m *network.Mesh) error {
	table := int(meshTables + p.meshNumber())
	if err := dropRoutes(h, table, m); err != nil {
		return err
	}
	for _, to := range m.Subnets() {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(to), Table: table}
		if to.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("route %s in table %d: %w", to, table, err)
		}
	}
	want := p.meshPolicy(m)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := rulesTo(h, family, table)
		if err != nil {
			return err
		}
		for _, r := range have {
			if i := indexRule(want, r); i < 0 {
				if err := h.RuleDel(&r); err != nil {
					return fmt.Errorf("remove routing rule %d: %w", r.Priority, err)
				}
			}
		}
		for _, w := range want {
			if w.Family == family && indexRule(have, w) < 0 {
				if err := h.RuleAdd(&w); err != nil && !errors.Is(err, unix.EEXIST) {
					return fmt.Errorf("add routing rule %d: %w", w.Priority, err)
				}
			}
		}
	}
	return nil
}

// dropRoutes removes what is in the table and not this node's any more.
func dropRoutes(h *netlink.Handle, table int, m *network.Mesh) error {
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range routes {
		if !slices.Contains(m.Subnets(), prefix(routes[i].Dst)) {
			if err := h.RouteDel(&routes[i]); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove route %s from table %d: %w", routes[i].Dst, table, err)
			}
		}
	}
	return nil
}

// meshPolicy are the rules by which packets get to the mesh's routing table.
func (p *Plane) meshPolicy(m *network.Mesh) []netlink.Rule {
	var l []netlink.Rule
	rule := func(to netip.Addr, priority int) *netlink.Rule {
		r := netlink.NewRule()
		r.Family, r.Table, r.Priority = int(inet(to)), int(meshTables+p.meshNumber()), priority
		return r
	}
	for _, a := range m.Addresses {
		first, mask := rule(a.Addr(), meshRuleFirst), uint32(meshMask)
		first.Mark, first.Mask = p.meshMark(), &mask
		l = append(l, *first)
	}
	for _, to := range m.Subnets() {
		last := rule(to.Addr(), meshRuleLast)
		last.Dst = ipNet(to)
		l = append(l, *last)
	}
	return l
}

// rulesTo returns the routing rules that lead to a table.
func rulesTo(h *netlink.Handle, family, table int) ([]netlink.Rule, error) {
	l, err := whole(func() ([]netlink.Rule, error) {
		return h.RuleListFiltered(family, &netlink.Rule{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	for i := range l {
		l[i].Family = family
	}
	return l, nil
}

// indexRule finds a rule that does the same.
func indexRule(l []netlink.Rule, r netlink.Rule) int {
	dst := func(r netlink.Rule) netip.Prefix { return prefix(r.Dst) }
	for i, o := range l {
		if o.Family == r.Family && o.Priority == r.Priority && o.Table == r.Table && o.Mark == r.Mark && dst(o) == dst(r) {
			return i
		}
	}
	return -1
}

// dropMeshDevice removes the pair, with its routes, and the rules.
func (p *Plane) dropMeshDevice() error {
	h, err := p.handle()
	if err != nil {
		return err
	}
	defer p.put(h)
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := rulesTo(h, family, int(meshTables+p.meshNumber()))
		if err != nil {
			return err
		}
		for _, r := range rules {
			if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove routing rule %d: %w", r.Priority, err)
			}
		}
	}
	l, err := h.LinkByName(p.meshDevice())
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		if owner, kind, _ := ours(l.Attrs().Alias); owner != p.owner || kind != "mesh" {
			return nil // not ours to remove
		}
		err = h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", p.meshDevice(), err)
	}
	return nil
}

// hostAddresses returns the host's own addresses, by device.
func (p *Plane) hostAddresses() (map[string][]netip.Addr, error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	defer p.put(h)
	list, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	names, r := map[int]string{}, map[string][]netip.Addr{}
	for _, a := range list {
		v := prefix(a.IPNet).Addr()
		if !v.IsValid() || v.IsLinkLocalUnicast() {
			continue
		}
		if names[a.LinkIndex] == "" {
			l, err := h.LinkByIndex(a.LinkIndex)
			if isNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			names[a.LinkIndex] = l.Attrs().Name
		}
		r[names[a.LinkIndex]] = append(r[names[a.LinkIndex]], v)
	}
	return r, nil
}
