package local

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ensureLinks makes the bridge and the host's port.
func (f fabric) ensureLinks(inside *netlink.Handle, ns netns.NsHandle, subnet netip.Prefix) error {
	mtu := worldMTU()
	bridge, err := inside.LinkByName(bridgeName)
	if missing(err) {
		if err := inside.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(bridgeName, mtu)}); err != nil {
			return fmt.Errorf("add the fabric's bridge: %w", err)
		}
		bridge, err = inside.LinkByName(bridgeName)
	}
	if err != nil {
		return fmt.Errorf("the fabric's bridge: %w", err)
	}
	if err := inside.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("the fabric's bridge: %w", err)
	}
	link, err := netlink.LinkByName(f.link)
	if missing(err) {
		a := attrs(hostPort, mtu)
		a.MasterIndex = bridge.Attrs().Index
		home, err := netns.Get()
		if err != nil {
			return err
		}
		defer home.Close()
		if err := inside.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: f.link, PeerNamespace: netlink.NsFd(home), PeerHardwareAddr: hardwareAddr(gateway(subnet)), PeerMTU: uint32(mtu)}); err != nil {
			return fmt.Errorf("join the host to the fabric: %w", err)
		}
		if err := up(inside, hostPort); err != nil {
			return err
		}
		if link, err = netlink.LinkByName(f.link); err != nil {
			return fmt.Errorf("device %s: %w", f.link, err)
		}
	} else if err != nil {
		return fmt.Errorf("device %s: %w", f.link, err)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(gateway(subnet), subnet.Bits()))}); err != nil {
		return fmt.Errorf("give %s its address: %w", f.link, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("device %s: %w", f.link, err)
	}
	return nil
}

// attach gives a machine's namespace its device, address and route.
func (f fabric) attach(s fabricState, name string, pid int) error {
	address := s.Hosts[name]
	ns, err := netns.GetFromPath(f.pin)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := removePort(inside, address); err != nil {
		return err
	}
	bridge, err := inside.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("the fabric's bridge: %w", err)
	}
	own, err := netns.GetFromPath(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer own.Close()
	mtu := bridge.Attrs().MTU
	a := attrs(port(address), mtu)
	a.MasterIndex = bridge.Attrs().Index
	if err := inside.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: machineEnd, PeerNamespace: netlink.NsFd(own), PeerHardwareAddr: hardwareAddr(address), PeerMTU: uint32(mtu)}); err != nil {
		return fmt.Errorf("join the machine to the fabric: %w", err)
	}
	if err := up(inside, port(address)); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(own)
	if err != nil {
		return err
	}
	defer h.Close()
	return configureMachine(h, netip.PrefixFrom(address, s.Subnet.Bits()), gateway(s.Subnet))
}

func configureMachine(h *netlink.Handle, address netip.Prefix, gw netip.Addr) error {
	if err := up(h, "lo"); err != nil {
		return err
	}
	eth, err := h.LinkByName(machineEnd)
	if err != nil {
		return err
	}
	if err := h.AddrReplace(eth, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return fmt.Errorf("give the machine its address: %w", err)
	}
	if err := h.LinkSetUp(eth); err != nil {
		return err
	}
	if err := h.RouteReplace(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: gw.AsSlice()}); err != nil {
		return fmt.Errorf("give the machine its route: %w", err)
	}
	return nil
}

// detach removes the machine's port, which a killed machine leaves for a
// moment.
func (f fabric) detach(address netip.Addr) error {
	ns, err := netns.GetFromPath(f.pin)
	if err != nil {
		return nil //nolint:nilerr // no fabric, no port
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return nil //nolint:nilerr // a pin that is no namespace any more, as after a reboot
	}
	defer inside.Close()
	return removePort(inside, address)
}

// apply makes the cuts so, where there is a fabric.
func (f fabric) apply(s fabricState) error {
	ns, err := netns.GetFromPath(f.pin)
	if err != nil {
		return nil //nolint:nilerr // after a reboot: the next start makes it
	}
	defer ns.Close()
	return f.filter(ns, drops(s.Cuts, s.Hosts))
}

func removePort(inside *netlink.Handle, address netip.Addr) error {
	l, err := inside.LinkByName(port(address))
	if missing(err) {
		return nil
	}
	if err == nil {
		err = inside.LinkDel(l)
	}
	if err != nil && !missing(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", port(address), err)
	}
	return nil
}

func attrs(name string, mtu int) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, mtu
	return a
}

func up(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	return nil
}

func missing(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hostPrefixes are the subnets that the host routes anywhere, in any table.
func hostPrefixes() ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var all []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			ones, _ := r.Dst.Mask.Size()
			all = append(all, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return all, nil
}

// worldMTU is that of the device of the host's default route: what machines
// send beyond the fabric has to fit there.
func worldMTU() int {
	routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 1)) // nobody's (RFC 5737); nothing is sent
	if err != nil || len(routes) == 0 {
		return defaultMTU
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil || l.Attrs().MTU < 1280 || l.Attrs().MTU > defaultMTU {
		return defaultMTU
	}
	return l.Attrs().MTU
}
