package linux

import (
	"bytes"
	"context"
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

const loopback = 1 // lo's index, in every namespace

// putSandbox makes a sandbox, or changes the one that is there. It returns what
// is there afterwards, nil for nothing.
func (p *Plane) putSandbox(ctx context.Context, have, want *network.Sandbox) (*network.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return have, err
	}
	if have != nil {
		same := *have
		if same.Resolver = want.Resolver; same.Equal(want) {
			return want, nil // see setResolvers
		}
	}
	path := p.Path(want.ID)
	var got *network.Sandbox
	err := p.onThread(func() (err error) {
		if have == nil {
			got, err = p.makeSandbox(path, want)
		} else {
			got, err = p.changeSandbox(path, have, want)
		}
		return err
	})
	return got, err
}

// makeSandbox makes the namespace and all that is in it. The thread is in it
// afterwards. On error nothing is left.
func (p *Plane) makeSandbox(path string, want *network.Sandbox) (_ *network.Sandbox, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := bindNamespace(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.dropSandbox(want))
		}
	}()
	for _, s := range []struct{ file, value string }{
		{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
		{"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
	} {
		if err := writeSysctl(s.file, s.value); err != nil {
			return nil, err
		}
	}
	n, err := p.enter(path)
	if err != nil {
		return nil, err
	}
	defer n.close()
	if err := n.h.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: loopback}}); err != nil {
		return nil, fmt.Errorf("set lo up: %w", err)
	}
	if err := n.addInterfaces(want); err != nil {
		return nil, err
	}
	return want, n.setGateways(&network.Sandbox{}, want)
}

// addInterfaces makes those of a new sandbox. The ones without IPv6 come to be
// without it: to turn it off afterwards takes the kernel's lock of all networks,
// for which the writer of a file spins while others have it.
func (n *inside) addInterfaces(want *network.Sandbox) error {
	const file = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	off := []byte("1")
	was, e := os.ReadFile(file)
	was = bytes.TrimSpace(was)
	if e != nil || bytes.Equal(was, off) { // the kernel has no IPv6, or hosts' settings are inherited
		was = off
	}
	for i := range want.Interfaces {
		f := &want.Interfaces[i]
		if without := !hasIPv6(f); without != n.without6 && !bytes.Equal(was, off) {
			value := was
			if without {
				value = off
			}
			if err := writeSysctl(file, string(value)); err != nil {
				return err
			}
			n.without6 = without
		}
		if err := n.addInterface(want.ID, f); err != nil {
			return err
		}
	}
	if n.without6 {
		n.without6 = false
		return writeSysctl(file, string(was))
	}
	return nil
}

func hasIPv6(f *network.Interface) bool {
	return slices.ContainsFunc(f.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() })
}

// changeSandbox enters a sandbox's namespace and makes the differences.
func (p *Plane) changeSandbox(path string, have, want *network.Sandbox) (*network.Sandbox, error) {
	ns, err := os.Open(path)
	if err != nil {
		return have, err
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return have, fmt.Errorf("enter namespace %s: %w", path, err)
	}
	n, err := p.enter(path)
	if err != nil {
		return have, err
	}
	defer n.close()
	now := &network.Sandbox{ID: want.ID, Gateway4: have.Gateway4, Gateway6: have.Gateway6, Resolver: have.Resolver}
	for i := range have.Interfaces {
		f := &have.Interfaces[i]
		if w := want.Interface(f.HostName); w != nil && w.Equal(f) {
			now.Interfaces = append(now.Interfaces, *f)
		} else if err := n.dropInterface(f); err != nil {
			return have, err
		}
	}
	for i := range want.Interfaces {
		if f := &want.Interfaces[i]; now.Interface(f.HostName) == nil {
			if err := n.addInterface(want.ID, f); err != nil {
				return now, err
			}
			now.Interfaces = append(now.Interfaces, *f)
			// What was routed through an interface went with it.
			now.Gateway4, now.Gateway6 = netip.Addr{}, netip.Addr{}
		}
	}
	if len(now.Interfaces) < len(have.Interfaces) {
		now.Gateway4, now.Gateway6 = netip.Addr{}, netip.Addr{}
	}
	if err := n.setGateways(now, want); err != nil {
		return now, err
	}
	return want, nil
}

// inside is a sandbox that the thread is in.
type inside struct {
	p    *Plane
	h    *netlink.Handle // in the namespace
	host *netlink.Handle
	ns   *os.File

	without6 bool // interfaces that are made now come without IPv6
}

func (p *Plane) enter(path string) (*inside, error) {
	n := &inside{p: p}
	var err error
	if n.ns, err = os.Open(path); err != nil {
		return nil, err
	}
	if n.h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err == nil {
		n.host, err = p.handle()
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *inside) close() {
	_ = n.ns.Close()
	if n.h != nil {
		n.h.Close()
	}
	if n.host != nil {
		n.p.put(n.host)
	}
}

// addInterface makes a veth pair with one end in the sandbox. The alias, set
// last, marks it as complete.
func (n *inside) addInterface(id string, f *network.Interface) error {
	if f.Parent != "" {
		return n.addMacvlan(f)
	}
	side, done, err := n.side(f)
	if err != nil {
		return err
	}
	defer done()
	device := f.Bridge
	if f.Overlay != "" {
		device = overlayBridge
	}
	bridge, err := side.LinkByName(device)
	if err != nil {
		return fmt.Errorf("interface %s: bridge %s: %w", f.Name, device, err)
	}
	mac, err := net.ParseMAC(f.MAC)
	if err != nil {
		return err
	}
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.MasterIndex, a.Flags = f.HostName, f.MTU, bridge.Attrs().Index, net.FlagUp
	v := &netlink.Veth{LinkAttrs: a, PeerName: f.Name, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(n.ns.Fd())}
	err = side.LinkAdd(v)
	if errors.Is(err, unix.EEXIST) { // left half-made by a daemon that was killed
		if err = n.dropInterface(f); err == nil {
			err = side.LinkAdd(v)
		}
	}
	if err != nil {
		return fmt.Errorf("interface %s: make veth %s on %s: %w", f.Name, f.HostName, device, err)
	}
	if err := n.configure(f); err != nil {
		return fmt.Errorf("interface %s: %w", f.Name, err)
	}
	return n.complete(side, v, id, f)
}

// side returns a netlink socket where the other end of an interface is: in the
// host's namespace, or in an overlay's. done gives it back.
func (n *inside) side(f *network.Interface) (h *netlink.Handle, done func(), err error) {
	if f.Overlay == "" {
		return n.host, func() {}, nil
	}
	if h, err = n.p.overlayHandle(f.Overlay); err != nil {
		return nil, nil, fmt.Errorf("interface %s: %w", f.Name, err)
	}
	return h, h.Close, nil
}

// complete sets what only a bridge's port has, and the mark.
func (n *inside) complete(side *netlink.Handle, l netlink.Link, id string, f *network.Interface) error {
	// Where frames on a bridge pass the IP packet filter (br_netfilter), a
	// container reaches its own published port by the port it came from.
	if err := side.LinkSetHairpin(l, true); err != nil {
		return fmt.Errorf("interface %s: hairpin mode of %s: %w", f.Name, f.HostName, err)
	}
	if b := n.p.bridgeOf(f.Bridge); b != nil && b.Isolated {
		if err := side.LinkSetIsolated(l, true); err != nil {
			return fmt.Errorf("interface %s: isolate %s: %w", f.Name, f.HostName, err)
		}
	}
	if err := side.LinkSetAlias(l, n.p.alias("sandbox", id)); err != nil {
		return fmt.Errorf("interface %s: mark %s: %w", f.Name, f.HostName, err)
	}
	return nil
}

// configure sets up the sandbox's end.
func (n *inside) configure(f *network.Interface) error {
	l, err := n.h.LinkByName(f.Name)
	if err != nil {
		return err
	}
	if !hasIPv6(f) && !n.without6 {
		// No IPv6 there: no link-local address either. Kernels without IPv6 have no such file.
		if err := writeSysctl("/proc/sys/net/ipv6/conf/"+f.Name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, s := range f.Sysctls {
		k, v, _ := strings.Cut(s, "=")
		path := strings.ReplaceAll(k, ".", "/")
		if err := writeSysctl("/proc/sys/"+strings.Replace(path, "/IFNAME/", "/"+f.Name+"/", 1), v); err != nil {
			return err
		}
	}
	for _, a := range f.Addresses {
		if err := n.h.AddrAdd(l, address(a)); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	if most := n.p.cryptPieces(f); most > 0 {
		if err := n.h.LinkSetGSOMaxSegs(l, most); err != nil {
			return fmt.Errorf("limit segments to %d: %w", most, err)
		}
	}
	return n.h.LinkSetUp(l)
}

// address is how netlink wants one. IPv6 ones are not probed for duplicates:
// the pool sees to that, and probing would take a second.
func address(a netip.Prefix) *netlink.Addr {
	r := &netlink.Addr{IPNet: ipNet(a)}
	if a.Addr().Is6() {
		r.Flags = unix.IFA_F_NODAD
	}
	return r
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// setGateways makes the default routes what they should be.
func (n *inside) setGateways(have, want *network.Sandbox) error {
	for _, g := range []struct {
		have, want netip.Addr
		all        *net.IPNet
	}{
		{have.Gateway4, want.Gateway4, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}},
		{have.Gateway6, want.Gateway6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
	} {
		var err error
		switch {
		case g.have == g.want:
			continue
		case g.want.IsValid():
			err = n.h.RouteReplace(&netlink.Route{Dst: g.all, Gw: g.want.AsSlice()})
		default:
			if err = n.h.RouteDel(&netlink.Route{Dst: g.all}); errors.Is(err, unix.ESRCH) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("default route via %s: %w", g.want, err)
		}
	}
	return nil
}

// dropInterface deletes a pair. It takes some 30 ms of waiting in the kernel,
// so it's only for interfaces of sandboxes that go on.
func (n *inside) dropInterface(f *network.Interface) error {
	if f.Parent != "" {
		return n.dropMacvlan(f)
	}
	if f.Overlay != "" && !bound(n.p.overlayPath(f.Overlay)) {
		return nil // it went with the overlay
	}
	side, done, err := n.side(f)
	if err != nil {
		return err
	}
	defer done()
	l, err := side.LinkByName(f.HostName)
	if err == nil {
		err = side.LinkDel(l)
	}
	if err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove veth %s: %w", f.HostName, err)
	}
	return nil
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf)
}

// dropSandbox removes a sandbox. Its veths go with the namespace, some time later.
func (p *Plane) dropSandbox(s *network.Sandbox) error {
	if err := p.dropMacvlans(s); err != nil {
		p.log.Warn("network: addresses of a container that is gone may be in use for a moment", "sandbox", s.ID, "error", err)
	}
	return unbindNamespace(p.Path(s.ID))
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}
