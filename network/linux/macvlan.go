package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// macvlanKind marks the interfaces that are on a device of the host by themselves.
// They have no end on the host: the mark, set last, is in the sandbox.
const macvlanKind = "macvlan"

func macvlanMode(mode string) (uint32, error) {
	switch mode {
	case "", network.MacvlanBridge:
		return nl.MACVLAN_MODE_BRIDGE, nil
	case network.MacvlanPrivate:
		return nl.MACVLAN_MODE_PRIVATE, nil
	case network.MacvlanVEPA:
		return nl.MACVLAN_MODE_VEPA, nil
	case network.MacvlanPassthru:
		return nl.MACVLAN_MODE_PASSTHRU, nil
	}
	return 0, fmt.Errorf("unknown macvlan mode %q", mode)
}

// makeMacvlan makes an interface of the sandbox on a device of the host.
func (n *inside) makeMacvlan(f *network.Interface) error {
	host, err := n.side(f)
	if err != nil {
		return err
	}
	parent, err := host.index(f.Parent)
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
	if f.Mode == network.MacvlanPassthru {
		mac = nil // it has its parent's
	}
	make := func() error {
		host.macvlan(f.Name, parent, mode, f.MTU, mac, n.ns)
		return host.run()
	}
	err = make()
	if errors.Is(err, unix.EEXIST) { // left half-made by a daemon that was killed
		if err = n.dropInterface(f); err == nil {
			err = make()
		}
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("interface %s: this kernel has no macvlan: %w", f.Name, err)
	case err != nil:
		return fmt.Errorf("interface %s on %s: %w", f.Name, f.Parent, err)
	}
	return nil
}

// dropMacvlans removes the interfaces of that kind from a sandbox that is about to
// go: a namespace goes some time after its name, and until then its parent lets no
// other have their MAC addresses, which a container that starts again has.
func (p *Plane) dropMacvlans(s *network.Sandbox) error {
	if !slices.ContainsFunc(s.Interfaces, func(f network.Interface) bool { return f.Parent != "" }) {
		return nil
	}
	err := p.inSandbox(p.Path(s.ID), func() error {
		r, err := openRequests()
		if err != nil {
			return err
		}
		defer r.shut()
		for i := range s.Interfaces {
			if f := &s.Interfaces[i]; f.Parent != "" {
				r.dropLink(f.Name)
			}
		}
		return r.run()
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sandboxHandle returns a netlink socket in a sandbox.
func (p *Plane) sandboxHandle(id string) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := p.inSandbox(p.Path(id), func() (err error) {
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
