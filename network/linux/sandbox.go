package linux

import (
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

// made is what putSandbox has done.
type made struct {
	is *network.Sandbox // what is there afterwards, nil: nothing
	// touched: it is not as it was, but for how names are resolved.
	touched bool
	// What answers in it, and how it is prepared for published ports; nil: that is to
	// be done yet.
	resolver *opened
	box      *meshBox
}

// putSandbox makes a sandbox, or changes the one that is there. The thread, which is
// the caller's, may be in any namespace afterwards.
func (p *Plane) putSandbox(ctx context.Context, have, want *network.Sandbox, mesh string) (made, error) {
	if err := ctx.Err(); err != nil {
		return made{is: have}, err
	}
	if have != nil {
		same := *have
		if same.Resolver = want.Resolver; same.Equal(want) {
			return made{is: want}, nil // see setResolvers
		}
		got, err := p.changeSandbox(p.Path(want.ID), have, want)
		return made{is: got, touched: true}, err
	}
	n, err := p.makeSandbox(p.Path(want.ID), want)
	if err != nil {
		return made{touched: true}, err
	}
	defer n.close()
	m := made{is: want, touched: true}
	n.furnish(&m, mesh)
	return m, nil
}

// makeSandbox makes the namespace and the interfaces in it. The thread is in it
// afterwards. On error nothing is left.
func (p *Plane) makeSandbox(path string, want *network.Sandbox) (_ *inside, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	if err := bindNamespace(path); err != nil {
		return nil, err
	}
	n, err := p.enter(path)
	if err == nil {
		if err = n.fill(want); err == nil {
			return n, nil
		}
		n.close()
	}
	return nil, errors.Join(err, p.dropSandbox(want))
}

// fill makes all that is in a new sandbox.
func (n *inside) fill(want *network.Sandbox) error {
	for _, s := range []struct{ file, value string }{{"ip_unprivileged_port_start", "0"}, {"ping_group_range", "0 2147483647"}} {
		if err := n.ipv4.write(s.file, s.value); err != nil {
			return err
		}
	}
	if err := n.makeInterfaces(want); err != nil {
		return err
	}
	n.in.up("set lo up", loopback, 0)
	for i := range want.Interfaces {
		if err := n.configure(&want.Interfaces[i]); err != nil {
			return err
		}
	}
	n.setGateways(&network.Sandbox{}, want)
	if err := n.in.run(); err != nil {
		return err
	}
	for i := range want.Interfaces {
		if err := n.complete(want.ID, &want.Interfaces[i]); err != nil {
			return err
		}
	}
	return n.runSides()
}

// makeInterfaces makes those of a new sandbox. The ones without IPv6 come to be
// without it: to turn it off afterwards takes the kernel's lock of all networks,
// for which the writer of a file spins while others have it.
func (n *inside) makeInterfaces(want *network.Sandbox) error {
	const off = "1"
	was := off
	all, err := openSetting(unix.AT_FDCWD, "/proc/sys/net/ipv6/conf/default/disable_ipv6", unix.O_RDWR)
	if err == nil { // else the kernel has no IPv6
		defer all.close()
		if was, err = all.read(); err != nil {
			return err
		}
	}
	now := was // off also where hosts' settings are inherited
	for i := range want.Interfaces {
		f := &want.Interfaces[i]
		value := was
		if !hasIPv6(f) {
			value, n.without6[f.Name] = off, true
		}
		if value != now {
			if err := all.write(value); err != nil {
				return err
			}
			now = value
		}
		if err := n.makeInterface(f); err != nil {
			return err
		}
	}
	if now != was {
		return all.write(was)
	}
	return nil
}

func hasIPv6(f *network.Interface) bool {
	return slices.ContainsFunc(f.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() })
}

// changeSandbox enters a sandbox's namespace and makes the differences.
func (p *Plane) changeSandbox(path string, have, want *network.Sandbox) (*network.Sandbox, error) {
	if err := inNamespace(path); err != nil {
		return have, err
	}
	n, err := p.enter(path)
	if err != nil {
		return have, err
	}
	defer n.close()
	now := &network.Sandbox{ID: want.ID, Gateway4: have.Gateway4, Gateway6: have.Gateway6, Resolver: have.Resolver}
	for i := range have.Interfaces {
		f := &have.Interfaces[i]
		w := want.Interface(f.HostName)
		if w == nil || !w.SameDevice(f) {
			if err := n.dropInterface(f); err != nil {
				return have, err
			}
			continue
		}
		if err := n.changeRoutes(f, w); err != nil {
			return have, err
		}
		now.Interfaces = append(now.Interfaces, *w)
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
	n.setGateways(now, want)
	if err := n.in.run(); err != nil {
		return now, err
	}
	return want, nil
}

// inside is a sandbox that the thread is in.
type inside struct {
	p     *Plane
	in    *requests // in the namespace
	ns    int
	ipv4  ipv4Settings
	sides map[string]*requests // in overlays' namespaces, and the host's: ""

	without6 map[string]bool // interfaces that were made without IPv6
	joined   []string        // interfaces of which the other end comes up with the next runSides
}

func (p *Plane) enter(path string) (*inside, error) {
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", path, err)
	}
	in, err := openRequests()
	if err != nil {
		_ = unix.Close(ns)
		return nil, err
	}
	ipv4, err := openIPv4Settings()
	if err != nil {
		in.shut()
		_ = unix.Close(ns)
		return nil, err
	}
	return &inside{p: p, in: in, ns: ns, ipv4: ipv4, sides: map[string]*requests{}, without6: map[string]bool{}}, nil
}

func (n *inside) close() {
	_ = unix.Close(n.ns)
	n.in.shut()
	n.ipv4.close()
	for _, r := range n.sides {
		r.giveBack()
	}
}

// addInterface makes an interface of a sandbox that is there already. The alias, set
// last, marks it as complete.
func (n *inside) addInterface(id string, f *network.Interface) error {
	if err := n.makeInterface(f); err != nil {
		return err
	}
	if err := n.configure(f); err != nil {
		return err
	}
	if err := n.in.run(); err != nil {
		return fmt.Errorf("interface %s: %w", f.Name, err)
	}
	if err := n.complete(id, f); err != nil {
		return err
	}
	return n.runSides()
}

// makeInterface makes a veth pair with one end in the sandbox.
func (n *inside) makeInterface(f *network.Interface) error {
	if f.Parent != "" {
		return n.makeMacvlan(f)
	}
	side, err := n.side(f)
	if err != nil {
		return err
	}
	device := f.Bridge
	if f.Overlay != "" {
		device = overlayBridge
	}
	bridge, err := side.index(device)
	if err != nil {
		return fmt.Errorf("interface %s: bridge %s: %w", f.Name, device, err)
	}
	mac, err := net.ParseMAC(f.MAC)
	if err != nil {
		return err
	}
	create := func() error {
		side.veth(f.HostName, bridge, f.MTU, f.Name, mac, n.ns)
		return side.run()
	}
	err = create()
	if errors.Is(err, unix.EEXIST) { // left half-made by a daemon that was killed
		if err = n.dropInterface(f); err == nil {
			err = create()
		}
	}
	if err != nil {
		return fmt.Errorf("interface %s on %s: %w", f.Name, device, err)
	}
	return nil
}

// side returns a netlink socket where the other end of an interface is: in the
// host's namespace, or in an overlay's.
func (n *inside) side(f *network.Interface) (*requests, error) {
	if r := n.sides[f.Overlay]; r != nil {
		return r, nil
	}
	r, err := n.p.borrow(f.Overlay)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", f.Name, err)
	}
	n.sides[f.Overlay] = r
	return r, nil
}

// runSides has done what is to be done outside of the sandbox. Interfaces of which the
// other end has come up carry afterwards.
func (n *inside) runSides() error {
	var errs []error
	for _, r := range n.sides {
		errs = append(errs, r.run())
	}
	for _, name := range n.joined {
		n.in.settle(name)
		errs = append(errs, n.in.run())
	}
	n.joined = nil
	return errors.Join(errs...)
}

// complete asks for what only a bridge's port has, and the mark.
func (n *inside) complete(id string, f *network.Interface) error {
	if f.Parent != "" {
		n.in.alias(f.Name, n.p.alias(macvlanKind, f.HostName))
		return n.in.run()
	}
	side, err := n.side(f)
	if err != nil {
		return err
	}
	b := n.p.bridgeOf(f.Bridge)
	// Where frames on a bridge pass the IP packet filter (br_netfilter), a
	// container reaches its own published port by the port it came from.
	if f.Overlay == "" { // those in overlays have no IPv6
		side.noLinkLocal(f.HostName)
	}
	n.joined = append(n.joined, f.Name)
	side.port(f.HostName, b != nil && b.Isolated, n.p.alias("sandbox", id))
	return nil
}

// configure asks for what the sandbox's end is to have.
func (n *inside) configure(f *network.Interface) error {
	if !hasIPv6(f) && !n.without6[f.Name] {
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
	index, err := n.in.index(f.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", f.Name, err)
	}
	for _, a := range f.Addresses {
		n.in.address(index, a)
	}
	n.in.up("set "+f.Name+" up", index, uint32(n.p.cryptPieces(f)))
	for _, to := range f.Routes {
		n.in.reach(index, to)
	}
	return nil
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

// setGateways asks for the default routes that should be.
func (n *inside) setGateways(have, want *network.Sandbox) {
	for _, g := range []struct {
		have, want netip.Addr
		family     byte
	}{{have.Gateway4, want.Gateway4, unix.AF_INET}, {have.Gateway6, want.Gateway6, unix.AF_INET6}} {
		switch {
		case g.have == g.want:
		case g.want.IsValid():
			n.in.gateway(g.want)
		default:
			n.in.dropGateway(g.family)
		}
	}
}

// dropInterface deletes a pair. It takes some 30 ms of waiting in the kernel,
// so it's only for interfaces of sandboxes that go on.
func (n *inside) dropInterface(f *network.Interface) error {
	n.p.unexpect([]network.Interface{*f})
	if f.Parent != "" {
		n.in.dropLink(f.Name)
		return n.in.run()
	}
	if f.Overlay != "" && !bound(n.p.overlayPath(f.Overlay)) {
		return nil // it went with the overlay
	}
	side, err := n.side(f)
	if err != nil {
		return err
	}
	side.dropLink(f.HostName)
	return side.run()
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf)
}

// dropSandbox removes a sandbox. Its veths go with the namespace, some time later.
func (p *Plane) dropSandbox(s *network.Sandbox) error {
	p.unexpect(s.Interfaces)
	if have := p.believed(); have != nil && have.Sandboxes[s.ID] != nil {
		p.unexpect(have.Sandboxes[s.ID].Interfaces) // s may be what a look has left of it
	}
	if err := p.dropMacvlans(s); err != nil {
		p.log.Warn("network: addresses of a container that is gone may be in use for a moment", "sandbox", s.ID, "error", err)
	}
	return unbindNamespace(p.Path(s.ID))
}
