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
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Devices in an overlay's namespace.
const (
	overlayBridge = "br0"
	overlayTunnel = "vxlan0"
)

// overlayPath is the file that an overlay's namespace is bound to.
func (p *Plane) overlayPath(id string) string { return p.Path(network.OverlayPrefix + id) }

// overlayHandle opens a netlink socket in an overlay's namespace.
func (p *Plane) overlayHandle(id string) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(p.overlayPath(id))
	if err != nil {
		return nil, fmt.Errorf("overlay %s: open its namespace: %w", id, err)
	}
	defer ns.Close() //nolint:errcheck // nothing was written
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("overlay %s: open a netlink socket: %w", id, err)
	}
	return h, nil
}

func (p *Plane) putOverlays(ch *network.Changes, now *network.Config, f *failures) {
	put := ch.PutOverlays
	if ch.Options && now.Underlay != ch.To.Underlay {
		put = nil
		for _, o := range ch.To.Overlays { // tunnels have the underlay's address
			put = append(put, o)
		}
	}
	now.Underlay = ch.To.Underlay
	var unguarded error
	if u := now.Underlay; u.Local.IsValid() && p.keeper.At() != cryptAt(u) {
		unguarded = p.keeper.CloseCrypt() // its port may become that of tunnels
	}
	if len(put)+len(ch.DropOverlays) > 0 || ch.Options || !p.guard.known {
		unguarded = errors.Join(unguarded, p.setGuard(now, ch.To))
	}
	p.noteEncrypted(ch.To)
	for id := range ch.To.Overlays {
		f.add(network.TunnelItem(id), unguarded)
	}
	for _, o := range put {
		have := now.Overlays[o.ID]
		delete(now.Overlays, o.ID)
		if err := p.putOverlay(o); err != nil {
			f.add(network.OverlayItem(o.ID), err)
			continue
		}
		now.Overlays[o.ID] = o
		if o.Unknown {
			continue
		}
		if have != nil && have.Unknown {
			have = nil
		}
		err := unguarded
		if err == nil {
			err = p.putTunnel(have, o, now.Underlay)
			f.add(network.TunnelItem(o.ID), err)
		}
		if err != nil {
			local := *o
			local.Peers, local.Unknown = nil, true // read back before the next try
			now.Overlays[o.ID] = &local
		}
	}
	if len(put) > 0 || ch.Keys || ch.Options {
		p.setCrypt(now, ch.To, f)
	}
	p.missKeys(ch.To, f)
}

// putOverlay makes an overlay's namespace and bridge, or makes those that are
// there what they should be.
func (p *Plane) putOverlay(o *network.Overlay) error {
	path := p.overlayPath(o.ID)
	return p.onThread(func() error {
		if bound(path) {
			ns, err := os.Open(path)
			if err != nil {
				return err
			}
			defer ns.Close() //nolint:errcheck // nothing was written
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace %s: %w", path, err)
			}
		} else {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			if err := bindNamespace(path); err != nil {
				return err
			}
		}
		if err := p.watchOverlay(o.ID); err != nil {
			p.log.Warn("network: damage to an overlay is noticed late", "overlay", o.ID, "error", err)
		}
		return p.fillOverlay(o)
	})
}

// fillOverlay makes the bridge. The thread is in the overlay's namespace.
func (p *Plane) fillOverlay(o *network.Overlay) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: loopback}}); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	// Frames between containers of one network are nobody's to filter.
	for _, f := range []string{"iptables", "ip6tables", "arptables"} {
		if err := writeSysctl("/proc/sys/net/bridge/bridge-nf-call-"+f, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	l, err := h.LinkByName(overlayBridge)
	if isNotFound(err) {
		if err = h.LinkAdd(newBridge(&network.Bridge{Device: overlayBridge, Addresses: o.Addresses})); err == nil {
			l, err = h.LinkByName(overlayBridge)
		}
	}
	if err != nil {
		return fmt.Errorf("make its bridge: %w", err)
	}
	if l.Attrs().MTU != o.MTU {
		if err := h.LinkSetMTU(l, o.MTU); err != nil {
			return fmt.Errorf("set its bridge's mtu to %d: %w", o.MTU, err)
		}
	}
	disable := "1"
	if slices.ContainsFunc(o.Addresses, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		disable = "0"
	}
	for _, s := range [][2]string{
		{overlayBridge + "/accept_ra", "0"}, {overlayBridge + "/accept_dad", "0"}, {overlayBridge + "/disable_ipv6", disable},
		{"default/disable_ipv6", "1"}, // sandboxes' ends need no addresses
	} {
		if err := writeSysctl("/proc/sys/net/ipv6/conf/"+s[0], s[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := setAddresses(h, l, o.Addresses, func(netip.Prefix) bool { return false }); err != nil {
		return err
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set its bridge up: %w", err)
	}
	return p.adoptEnds(h, l)
}

// adoptEnds puts sandboxes' veths on the bridge that are not, as on one that was
// made anew.
func (p *Plane) adoptEnds(h *netlink.Handle, bridge netlink.Link) error {
	links, err := list(h)
	if err != nil {
		return err
	}
	for name, l := range links {
		if owner, kind, _ := ours(l.Attrs().Alias); (owner != p.owner || kind != "sandbox") && name != meshPort {
			continue
		}
		if l.Attrs().MasterIndex != bridge.Attrs().Index {
			err = h.LinkSetMaster(l, bridge)
		}
		if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
			err = h.LinkSetUp(l)
		}
		if err != nil && !isNotFound(err) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("put %s back on its bridge: %w", name, err)
		}
	}
	return nil
}

func (p *Plane) dropOverlays(ch *network.Changes, now *network.Config, f *failures) {
	for _, id := range ch.DropOverlays {
		err := p.keeper.DropTap(id)
		if err == nil {
			err = p.dropOverlay(id)
		}
		f.add(network.OverlayItem(id), err)
		if err == nil {
			delete(now.Overlays, id)
		}
	}
	if len(ch.DropOverlays) > 0 {
		p.setCrypt(now, ch.To, f)
		f.add(network.RulesItem, p.setGuard(now, ch.To))
	}
}

// dropOverlay removes an overlay. Its tunnel goes first: a namespace goes some
// time after its name, and until then no other could have the tunnel's id.
func (p *Plane) dropOverlay(id string) error {
	p.unwatchOverlay(id)
	if path := p.overlayPath(id); !bound(path) {
		return unbindNamespace(path)
	}
	h, err := p.overlayHandle(id)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := dropTunnel(h); err != nil {
		return err
	}
	return unbindNamespace(p.overlayPath(id))
}

// observeOverlays tells what overlays there are, and adds the ends of sandboxes'
// pairs in them to ends, by sandbox and name.
func (p *Plane) observeOverlays(want *network.Config, ends map[string]map[string]string) (map[string]*network.Overlay, error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	now := map[string]*network.Overlay{}
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), network.OverlayPrefix)
		if !ok {
			continue
		}
		o, err := p.observeOverlay(id, want, ends)
		if err != nil {
			p.log.Warn("network: an overlay is not as it should be, and is repaired", "overlay", id, "error", err)
			o = nil
		}
		switch {
		case o != nil && want.Overlays[id] != nil && want.Overlays[id].Unknown && o.SameBridge(want.Overlays[id]):
			now[id] = want.Overlays[id]
		case o != nil && want.Overlays[id] != nil && o.Equal(want.Overlays[id]):
			now[id] = want.Overlays[id]
		case o != nil:
			now[id] = o
		case want.Overlays[id] == nil:
			now[id] = &network.Overlay{ID: id}
		}
	}
	return now, nil
}

// observeOverlay reads an overlay from the kernel; nil if it is broken.
func (p *Plane) observeOverlay(id string, want *network.Config, ends map[string]map[string]string) (*network.Overlay, error) {
	if !bound(p.overlayPath(id)) {
		return nil, nil
	}
	h, err := p.overlayHandle(id)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := list(h)
	if err != nil {
		return nil, err
	}
	bridge := links[overlayBridge]
	intact := bridge != nil && bridge.Attrs().Flags&net.FlagUp != 0
	for name, l := range links {
		if owner, kind, sandbox := ours(l.Attrs().Alias); owner == p.owner && kind == "sandbox" {
			if ends[sandbox] == nil {
				ends[sandbox] = map[string]string{}
			}
			ends[sandbox][name] = id
			intact = intact && l.Attrs().MasterIndex == bridge.Attrs().Index && l.Attrs().Flags&net.FlagUp != 0
		}
	}
	if !intact {
		return nil, nil
	}
	o := &network.Overlay{ID: id, MTU: bridge.Attrs().MTU}
	if w := want.Overlays[id]; w != nil {
		o.VNI, o.Encrypted = w.VNI, w.Encrypted
	}
	if o.Addresses, err = addresses(h, bridge); err != nil {
		return nil, err
	}
	if w := want.Overlays[id]; w != nil && samePrefixes(o.Addresses, w.Addresses) {
		o.Addresses = w.Addresses // their order means nothing
	}
	return o, p.observeTunnel(h, links, o, want.Underlay)
}

func samePrefixes(a, b []netip.Prefix) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p netip.Prefix) bool { return !slices.Contains(b, p) })
}
