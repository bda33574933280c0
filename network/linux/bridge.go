package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// aliasPrefix begins the alias of every device of ours.
const aliasPrefix = "legion/"

// alias marks a device as ours: "legion/OWNER/KIND/DETAIL".
func (p *Plane) alias(kind, detail string) string {
	return aliasPrefix + p.owner + "/" + kind + "/" + detail
}

// ours reads an alias; owner is empty if no data plane made the device.
func ours(alias string) (owner, kind, detail string) {
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	parts := strings.SplitN(rest, "/", 3)
	if !ok || len(parts) != 3 {
		return "", "", ""
	}
	return parts[0], parts[1], parts[2]
}

// bridgeOf returns what a bridge is to be, as far as it was made.
func (p *Plane) bridgeOf(device string) *network.Bridge {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.making[device]
}

func (p *Plane) putBridges(ch *network.Changes, now *network.Config, f *failures) {
	for _, b := range ch.PutBridges {
		err := p.putBridge(b)
		f.add(network.BridgeItem(b.Device), err)
		delete(now.Bridges, b.Device)
		if err == nil {
			now.Bridges[b.Device] = b
		}
	}
	p.mu.Lock()
	p.making = now.Bridges
	p.mu.Unlock()
}

// putBridge makes a bridge, or makes the one that is there what it should be.
func (p *Plane) putBridge(b *network.Bridge) error {
	h, err := p.handle()
	if err != nil {
		return err
	}
	defer p.put(h)
	l, err := h.LinkByName(b.Device)
	if b.External {
		return err
	}
	if isNotFound(err) {
		if err = h.LinkAdd(newBridge(b)); err == nil {
			l, err = h.LinkByName(b.Device)
		}
		if err == nil {
			err = h.LinkSetAlias(l, p.alias("bridge", ""))
		}
	} else if err == nil {
		err = p.checkOwn(l)
	}
	if err != nil {
		return fmt.Errorf("make it: %w", err)
	}
	if b.MTU != 0 && l.Attrs().MTU != b.MTU {
		if err := h.LinkSetMTU(l, b.MTU); err != nil {
			return fmt.Errorf("set its mtu to %d: %w", b.MTU, err)
		}
	}
	if err := p.bridgeSysctls(b); err != nil {
		return err
	}
	if err := setAddresses(h, l, b.Addresses, p.foreignAddress(b)); err != nil {
		return err
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return p.adoptPorts(h, l, b)
}

// checkOwn refuses a device that somebody else made.
func (p *Plane) checkOwn(l netlink.Link) error {
	owner, _, _ := ours(l.Attrs().Alias)
	switch {
	case l.Type() != "bridge":
		return fmt.Errorf("device %s exists and is a %s, not a bridge", l.Attrs().Name, l.Type())
	case owner == "":
		return fmt.Errorf("bridge %s exists and is not ours: remove it or choose another name", l.Attrs().Name)
	case owner != p.owner:
		return fmt.Errorf("bridge %s belongs to another node on this host (owner %s): choose another name", l.Attrs().Name, owner)
	}
	return nil
}

// newBridge has an address of its own that does not change as ports come and
// go: 02:42 and the four last bytes of its first address, or subnet. Its MTU is set
// afterwards: one that a bridge is made with is forgotten with its last port.
func newBridge(b *network.Bridge) *netlink.Bridge {
	a := netlink.NewLinkAttrs()
	a.Name = b.Device
	if all := slices.Concat(b.Addresses, b.Bare); len(all) > 0 {
		s := all[0].Addr().AsSlice()
		a.HardwareAddr = append(net.HardwareAddr{0x02, 0x42}, s[len(s)-4:]...)
	}
	return &netlink.Bridge{LinkAttrs: a}
}

// bridgeSysctls: replies to what came from 127.0.0.1 to a published port are
// let in (packets that came with such an address are dropped by a rule); no router's
// advertisement is believed; and the bridge's own addresses, which nobody else
// can have, are of use at once.
func (p *Plane) bridgeSysctls(b *network.Bridge) error {
	v6 := slices.ContainsFunc(b.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() })
	return p.inHost(func() error {
		if err := writeSysctl("/proc/sys/net/ipv4/conf/"+b.Device+"/route_localnet", "1"); err != nil {
			return err
		}
		disable := "1"
		if v6 {
			disable = "0"
		}
		for _, s := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}, {"disable_ipv6", disable}} {
			if err := writeSysctl("/proc/sys/net/ipv6/conf/"+b.Device+"/"+s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// foreignAddress tells which addresses of a bridge are users': those in bare subnets that
// it was not given by us.
func (p *Plane) foreignAddress(b *network.Bridge) func(netip.Prefix) bool {
	var given []netip.Prefix
	if have := p.believed(); have != nil && have.Bridges[b.Device] != nil {
		given = have.Bridges[b.Device].Addresses
	}
	return func(a netip.Prefix) bool { return in(a, b.Bare) && !slices.Contains(given, a) }
}

// setAddresses makes a device's addresses the ones wanted, but for foreign ones;
// link-local ones are the kernel's.
func setAddresses(h *netlink.Handle, l netlink.Link, want []netip.Prefix, foreign func(netip.Prefix) bool) error {
	have, err := addresses(h, l)
	if err != nil {
		return err
	}
	for _, a := range have {
		if !slices.Contains(want, a) && !foreign(a) {
			if err := h.AddrDel(l, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
				return fmt.Errorf("remove address %s: %w", a, err)
			}
		}
	}
	for _, a := range want {
		if !slices.Contains(have, a) {
			if err := h.AddrAdd(l, address(a)); err != nil {
				return fmt.Errorf("add address %s: %w", a, err)
			}
		}
	}
	return nil
}

// in reports whether an address is in one of the subnets.
func in(a netip.Prefix, subnets []netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a.Addr()) })
}

func addresses(h *netlink.Handle, l netlink.Link) ([]netip.Prefix, error) {
	list, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var r []netip.Prefix
	for i := range list {
		if p := prefix(list[i].IPNet); p.IsValid() && !p.Addr().IsLinkLocalUnicast() && !isVIP(&list[i]) {
			r = append(r, p)
		}
	}
	return r, nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a.Unmap(), ones)
}

// adoptPorts puts sandboxes' veths back on a bridge that was made anew.
func (p *Plane) adoptPorts(h *netlink.Handle, bridge netlink.Link, b *network.Bridge) error {
	have := p.believed()
	if have == nil {
		return nil
	}
	for _, s := range have.Sandboxes {
		for i := range s.Interfaces {
			f := &s.Interfaces[i]
			if f.Bridge != b.Device {
				continue
			}
			l, err := h.LinkByName(f.HostName)
			if err == nil && l.Attrs().MasterIndex != bridge.Attrs().Index {
				err = h.LinkSetMaster(l, bridge)
			}
			if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
				err = h.LinkSetUp(l)
			}
			if err == nil {
				err = h.LinkSetIsolated(l, b.Isolated)
			}
			if err != nil && !isNotFound(err) {
				return fmt.Errorf("put %s back on it: %w", f.HostName, err)
			}
		}
	}
	return nil
}

func (p *Plane) dropBridges(ch *network.Changes, now *network.Config, f *failures) {
	if len(ch.DropBridges) == 0 {
		return
	}
	h, err := p.handle()
	if err != nil {
		f.add(network.RulesItem, err)
		return
	}
	defer p.put(h)
	for _, name := range ch.DropBridges {
		err := p.dropBridge(h, name, now.Bridges[name])
		f.add(network.BridgeItem(name), err)
		if err == nil {
			delete(now.Bridges, name)
		}
	}
}

func (p *Plane) dropBridge(h *netlink.Handle, name string, b *network.Bridge) error {
	if b != nil && b.External {
		return nil
	}
	l, err := h.LinkByName(name)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		if err = p.checkOwn(l); err != nil {
			return nil // not ours to remove
		}
		err = h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove it: %w", err)
	}
	return nil
}

// enableForwarding has the kernel forward between devices, for each family that
// a bridge, or this node's part in the routing mesh, has addresses of.
func (p *Plane) enableForwarding(c *network.Config) error {
	var from []netip.Prefix
	for _, b := range c.Bridges {
		if !b.Internal {
			from = append(from, slices.Concat(b.Subnets(false), b.Subnets(true))...)
		}
	}
	if c.Mesh != nil {
		from = append(from, c.Mesh.Addresses...)
	}
	files := map[string]bool{}
	for _, a := range from {
		if a.Addr().Is4() {
			files["/proc/sys/net/ipv4/ip_forward"] = true
		} else {
			files["/proc/sys/net/ipv6/conf/all/forwarding"] = true
		}
	}
	return p.inHost(func() error {
		for path := range files {
			now, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.TrimSpace(string(now)) != "0" {
				continue
			}
			if strings.Contains(path, "ipv6") {
				if err := keepRouters(c); err != nil {
					return err
				}
			}
			if err := writeSysctl(path, "1"); err != nil {
				return fmt.Errorf("turn on forwarding: %w", err)
			}
			p.log.Info("network: turned on forwarding between this host's devices", "file", path)
		}
		return nil
	})
}

// keepRouters has the host's own devices go on believing routers'
// advertisements, which a host that forwards doesn't by default: it would lose
// its default route.
func keepRouters(c *network.Config) error {
	const dir = "/proc/sys/net/ipv6/conf"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := dir + "/" + e.Name() + "/accept_ra"
		now, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(now)) != "1" || c.Bridges[e.Name()] != nil {
			continue // gone, or not believing anyway
		}
		if err := writeSysctl(path, "2"); err != nil {
			return fmt.Errorf("keep the default route of %s: %w", e.Name(), err)
		}
	}
	return nil
}
