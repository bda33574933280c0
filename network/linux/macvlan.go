package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// macvlanKind marks the interfaces that are on a device of the host by themselves.
// They have no end on the host: the mark, set last, is in the sandbox.
const macvlanKind = "macvlan"

func macvlanMode(mode string) (netlink.MacvlanMode, error) {
	switch mode {
	case "", network.MacvlanBridge:
		return netlink.MACVLAN_MODE_BRIDGE, nil
	case network.MacvlanPrivate:
		return netlink.MACVLAN_MODE_PRIVATE, nil
	case network.MacvlanVEPA:
		return netlink.MACVLAN_MODE_VEPA, nil
	case network.MacvlanPassthru:
		return netlink.MACVLAN_MODE_PASSTHRU, nil
	}
	return 0, fmt.Errorf("unknown macvlan mode %q", mode)
}

// addMacvlan makes an interface of the sandbox on a device of the host.
func (n *inside) addMacvlan(f *network.Interface) error {
	parent, err := n.host.LinkByName(f.Parent)
	if err != nil {
		return fmt.Errorf("interface %s: parent device %s: %w", f.Name, f.Parent, err)
	}
	mac, err := net.ParseMAC(f.MAC)
	if err != nil {
		return err
	}
	mode, err := macvlanMode(f.Mode)
	if err != nil {
		return fmt.Errorf("interface %s: %w", f.Name, err)
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.ParentIndex, a.HardwareAddr, a.Namespace = f.Name, f.MTU, parent.Attrs().Index, mac, netlink.NsFd(n.ns.Fd())
	if f.Mode == network.MacvlanPassthru {
		a.HardwareAddr = nil // it has its parent's
	}
	l := &netlink.Macvlan{LinkAttrs: a, Mode: mode}
	err = n.host.LinkAdd(l)
	if errors.Is(err, unix.EEXIST) { // left half-made by a daemon that was killed
		if err = n.dropMacvlan(f); err == nil {
			err = n.host.LinkAdd(l)
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("interface %s: this kernel has no macvlan: %w", f.Name, err)
	case err != nil:
		return fmt.Errorf("interface %s: make macvlan on %s: %w", f.Name, f.Parent, err)
	}
	if err := n.configure(f); err != nil {
		return fmt.Errorf("interface %s: %w", f.Name, err)
	}
	made, err := n.h.LinkByName(f.Name)
	if err == nil {
		err = n.h.LinkSetAlias(made, n.p.alias(macvlanKind, f.HostName))
	}
	if err != nil {
		return fmt.Errorf("interface %s: mark it: %w", f.Name, err)
	}
	return nil
}

func (n *inside) dropMacvlan(f *network.Interface) error {
	l, err := n.h.LinkByName(f.Name)
	if err == nil {
		err = n.h.LinkDel(l)
	}
	if err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", f.Name, err)
	}
	return nil
}

// dropMacvlans removes the interfaces of that kind from a sandbox that is about to
// go: a namespace goes some time after its name, and until then its parent lets no
// other have their MAC addresses, which a container that starts again has.
func (p *Plane) dropMacvlans(s *network.Sandbox) error {
	var h *netlink.Handle
	var errs []error
	for i := range s.Interfaces {
		f := &s.Interfaces[i]
		if f.Parent == "" {
			continue
		}
		if h == nil {
			var err error
			if h, err = p.sandboxHandle(s.ID); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			defer h.Close()
		}
		errs = append(errs, (&inside{p: p, h: h}).dropMacvlan(f))
	}
	return errors.Join(errs...)
}

// sandboxHandle returns a netlink socket in a sandbox.
func (p *Plane) sandboxHandle(id string) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := p.onThread(func() error {
		ns, err := os.Open(p.Path(id))
		if err != nil {
			return err
		}
		defer ns.Close() //nolint:errcheck // nothing was written
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace of %s: %w", id, err)
		}
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// macvlans are the interfaces of that kind in a sandbox.
func (p *Plane) macvlans(id string) ([]network.Interface, error) {
	h, err := p.sandboxHandle(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	var all []network.Interface
	for name, l := range links {
		if owner, kind, hostName := ours(l.Attrs().Alias); owner == p.owner && kind == macvlanKind {
			all = append(all, network.Interface{Name: name, HostName: hostName, Parent: "unknown"})
		}
	}
	return all, nil
}

// observeMacvlans adds to a sandbox what is there of such interfaces: as wanted, or
// to be removed. A sandbox that has had none and wants none is not looked into.
func (p *Plane) observeMacvlans(s, was, want *network.Sandbox) error {
	has := func(s *network.Sandbox) bool {
		for i := range s.Interfaces {
			if s.Interfaces[i].Parent != "" {
				return true
			}
		}
		return false
	}
	if !has(want) && (was == nil || !has(was)) {
		return nil
	}
	there, err := p.macvlans(s.ID)
	if err != nil {
		return err
	}
	for i := range there {
		if w := want.Interface(there[i].HostName); w != nil && w.Parent != "" && w.Name == there[i].Name {
			s.Interfaces = append(s.Interfaces, *w)
		} else {
			s.Interfaces = append(s.Interfaces, there[i])
		}
	}
	return nil
}
