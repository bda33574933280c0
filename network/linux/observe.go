package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// observe looks at what is there, and tells it in the terms of what was last
// set and of what is wanted: what is intact is taken to be as wanted, what is
// not is left out, and what nobody wants is named so that it is removed. What
// is inside a sandbox is its container's business and not looked at.
func (p *Plane) observe(was, want *network.Config) (*network.Config, error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	defer p.put(h)
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	if err := p.takeOver(); err != nil {
		p.log.Warn("network: what an earlier daemon has left to carry encrypted networks and answer names is not taken over", "error", err)
	}
	now := was.Clone()
	if was == nil {
		now.Rules4, now.Rules6, now.Forward, now.UserProxy = want.Rules4, want.Rules6, !want.Forward, want.UserProxy
		now.Underlay = want.Underlay // tunnels are looked at one by one
	}
	now.Forward = !want.Forward // looked at by every repair
	if now.Bridges, err = p.observeBridges(h, links, want); err != nil {
		return nil, err
	}
	ends := map[string]map[string]string{}
	if now.Overlays, err = p.observeOverlays(want, ends); err != nil {
		return nil, err
	}
	if now.Sandboxes, err = p.observeSandboxes(links, ends, was, want); err != nil {
		return nil, err
	}
	p.balancing.observe(was, want, now)
	p.checkGuard()
	p.rules.check(p)
	return now, nil
}

const (
	// listTries bounds how often a list that changed while it was read is read
	// again, and listPause is how long to wait before.
	listTries = 20
	listPause = 5 * time.Millisecond
)

// whole reads a list until it is whole: one that changed while it was read may
// lack things, and who takes a device for missing makes another.
func whole[T any](read func() (T, error)) (T, error) {
	l, err := read()
	for i := 0; i < listTries && errors.Is(err, netlink.ErrDumpInterrupted); i++ {
		time.Sleep(listPause) //nolint:sleep // milliseconds, with a bound
		l, err = read()
	}
	return l, err
}

// list returns the host's links by name.
func list(h *netlink.Handle) (map[string]netlink.Link, error) {
	l, err := whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	m := make(map[string]netlink.Link, len(l))
	for _, k := range l {
		m[k.Attrs().Name] = k
	}
	return m, nil
}

func (p *Plane) observeBridges(h *netlink.Handle, links map[string]netlink.Link, want *network.Config) (map[string]*network.Bridge, error) {
	now := map[string]*network.Bridge{}
	for name, l := range links {
		owner, kind, _ := ours(l.Attrs().Alias)
		w := want.Bridges[name]
		switch {
		case w != nil && w.External:
			now[name] = w
			continue
		case owner != p.owner || kind != "bridge":
			continue
		}
		now[name] = &network.Bridge{Device: name}
		if w == nil || l.Attrs().Flags&net.FlagUp == 0 || w.MTU != 0 && w.MTU != l.Attrs().MTU {
			continue
		}
		have, err := addresses(h, l)
		if err != nil {
			return nil, err
		}
		have = slices.DeleteFunc(have, p.foreignAddress(w))
		if len(have) == len(w.Addresses) && !slices.ContainsFunc(w.Addresses, func(a netip.Prefix) bool { return !slices.Contains(have, a) }) &&
			portsIntact(links, l, want) {
			now[name] = w
		}
	}
	return now, nil
}

// portsIntact reports whether all veths that should be on a bridge and are
// there at all are its ports, and up.
func portsIntact(links map[string]netlink.Link, bridge netlink.Link, want *network.Config) bool {
	for _, s := range want.Sandboxes {
		for i := range s.Interfaces {
			l := links[s.Interfaces[i].HostName]
			if l != nil && s.Interfaces[i].Bridge == bridge.Attrs().Name &&
				(l.Attrs().MasterIndex != bridge.Attrs().Index || l.Attrs().Flags&net.FlagUp == 0) {
				return false
			}
		}
	}
	return true
}

// observeSandboxes tells what sandboxes there are. ends are the devices that their
// pairs have on the host's side, by sandbox and name, with the overlay that each is
// in; links are those of the host itself.
func (p *Plane) observeSandboxes(links map[string]netlink.Link, ends map[string]map[string]string, was, want *network.Config) (map[string]*network.Sandbox, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for name, l := range links {
		if owner, kind, id := ours(l.Attrs().Alias); owner == p.owner && kind == "sandbox" {
			if ends[id] == nil {
				ends[id] = map[string]string{}
			}
			ends[id][name] = ""
		}
	}
	now := map[string]*network.Sandbox{}
	for _, e := range entries {
		id := e.Name()
		if strings.HasPrefix(id, network.OverlayPrefix) {
			continue
		}
		w := want.Sandboxes[id]
		if w == nil || !bound(p.Path(id)) {
			if w == nil {
				now[id] = &network.Sandbox{ID: id}
			}
			continue
		}
		s := &network.Sandbox{ID: id, Gateway4: w.Gateway4, Gateway6: w.Gateway6, Resolver: p.resolverOf(id)}
		var before *network.Sandbox
		if was != nil && was.Sandboxes[id] != nil {
			before = was.Sandboxes[id]
			s.Gateway4, s.Gateway6 = before.Gateway4, before.Gateway6
		}
		for i := range w.Interfaces {
			if overlay, there := ends[id][w.Interfaces[i].HostName]; there && overlay == w.Interfaces[i].Overlay {
				f := w.Interfaces[i]
				f.Routes = nil // an earlier version may have made it, without
				if before != nil {
					if b := before.Interface(f.HostName); b != nil {
						f.Routes = b.Routes
					}
				}
				s.Interfaces = append(s.Interfaces, f)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(ends[id])) {
			if f := w.Interface(name); f == nil || f.Overlay != ends[id][name] {
				s.Interfaces = append(s.Interfaces, network.Interface{HostName: name, Overlay: ends[id][name]})
			}
		}
		if err := p.observeMacvlans(s, before, w); err != nil {
			return nil, err
		}
		if s.Equal(w) {
			s = w
		} else if len(s.Interfaces) < len(w.Interfaces) {
			s.Gateway4, s.Gateway6 = netip.Addr{}, netip.Addr{} // went with the interface
		}
		now[id] = s
	}
	return now, nil
}

// Host implements network.Dataplane.
func (p *Plane) Host(context.Context) (*network.Host, error) {
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	defer p.put(h)
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	r := &network.Host{Devices: make(map[string]network.Device, len(links))}
	own := map[int]bool{}
	byIndex := make(map[int]netlink.Link, len(links))
	for name, l := range links {
		owner, kind, _ := ours(l.Attrs().Alias)
		d := network.Device{Bridge: l.Type() == "bridge", Own: owner == p.owner, MTU: l.Attrs().MTU}
		if owner != p.owner {
			d.Owner = owner
		}
		if kind == "" || kind == "bridge" {
			if d.Addresses, err = addresses(h, l); err != nil {
				return nil, err
			}
		}
		own[l.Attrs().Index] = d.Own
		byIndex[l.Attrs().Index] = l
		r.Devices[name] = d
	}
	if err := routed(h, r, own, byIndex); err != nil {
		return nil, err
	}
	return r, p.inHost(func() error {
		v, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		r.IPv6 = err == nil && len(v) > 0 && v[0] == '0'
		return nil
	})
}

// routed fills in the prefixes that are routed and the default route's MTU.
func routed(h *netlink.Handle, r *network.Host, own map[int]bool, links map[int]netlink.Link) error {
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	best := -1
	for _, t := range routes {
		d := prefix(t.Dst)
		if d.IsValid() && d.Bits() > 0 {
			if !own[t.LinkIndex] && isNetwork(d) {
				r.Prefixes = append(r.Prefixes, d.Masked())
			}
			continue
		}
		if l := links[t.LinkIndex]; l != nil && (best < 0 || t.Priority < best) {
			best, r.MTU = t.Priority, l.Attrs().MTU
		}
	}
	return nil
}

// shortestNetwork is the fewest bits of a prefix behind which a network is known
// to be: a class A network's, and more than fc00::/7, all private ones of IPv6.
const shortestNetwork = 8

// isNetwork tells a network that a host has or reaches from the default route in
// parts (VPNs make 0.0.0.0/1 and 128.0.0.0/1 of it), which covers every address
// that a swarm could choose.
func isNetwork(p netip.Prefix) bool {
	return p.Bits() >= shortestNetwork && !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast()
}

// hostEnd finds the end of a pair that is not the sandbox's; h is in the host's
// namespace.
func (p *Plane) hostEnd(h *netlink.Handle, f *network.Interface) (netlink.Link, error) {
	if f.Overlay == "" {
		return h.LinkByName(f.HostName)
	}
	o, err := p.overlayHandle(f.Overlay)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	return o.LinkByName(f.HostName)
}

// counted finds the device that has counted what an interface has carried.
func (p *Plane) counted(h *netlink.Handle, sandbox string, f *network.Interface) (netlink.Link, error) {
	if f.Parent == "" {
		return p.hostEnd(h, f)
	}
	in, err := p.sandboxHandle(sandbox)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return in.LinkByName(f.Name)
}

// Counters implements network.Dataplane. They are read at the host's ends of
// the pairs: what those have sent, the sandbox has received.
func (p *Plane) Counters(_ context.Context, sandbox string) ([]network.Counters, error) {
	have := p.believed()
	if have == nil || have.Sandboxes[sandbox] == nil {
		return nil, api.Errorf(api.NotFound, "no network namespace for %s", sandbox)
	}
	h, err := p.handle()
	if err != nil {
		return nil, err
	}
	defer p.put(h)
	var r []network.Counters
	for _, f := range have.Sandboxes[sandbox].Interfaces {
		l, err := p.counted(h, sandbox, &f)
		if err != nil {
			return nil, fmt.Errorf("counters of %s: %w", f.Name, err)
		}
		if s := l.Attrs().Statistics; s != nil {
			if f.Parent != "" { // it is the container's own
				s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped, s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped =
					s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped, s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
			}
			r = append(r, network.Counters{
				Interface: f.Name,
				RxBytes:   s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
				TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
			})
		}
	}
	return r, nil
}
