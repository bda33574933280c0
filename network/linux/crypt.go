package linux

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
	"github.com/legion-swarm/legion/network/linux/keeper"
)

// overlayCrypt is the device of an encrypted overlay, in its namespace.
const overlayCrypt = "crypt0"

// cryptAt is where encrypted networks' packets go: the next port, since the kernel
// has that of tunnels for itself.
func cryptAt(u network.Underlay) netip.AddrPort { return netip.AddrPortFrom(u.Local, u.Port+1) }

// putCrypt makes an encrypted overlay's way to other nodes what it should be.
func (p *Plane) putCrypt(h *netlink.Handle, o *network.Overlay, u network.Underlay) error {
	if err := dropTunnel(h); err != nil { // nothing in clear text
		return err
	}
	if len(o.Peers) == 0 {
		p.expectTunnel(o.ID, "", nil)
		return p.keeper.DropTap(o.ID)
	}
	if !u.Local.IsValid() || u.Port == 0 {
		return errNoUnderlay
	}
	if err := p.keeper.OpenCrypt(cryptAt(u)); err != nil {
		return err
	}
	l, err := h.LinkByName(overlayCrypt)
	if err != nil && !isNotFound(err) {
		return err
	}
	if err != nil || !p.sameCrypt(l, o) {
		p.expectTunnel(o.ID, "", nil)
		if l, err = p.newCrypt(h, o); err != nil {
			return fmt.Errorf("set up the device of an encrypted network: %w", err)
		}
	}
	bridge, err := h.LinkByName(overlayBridge)
	if err != nil {
		return err
	}
	have, err := p.readCryptPeers(h, l, bridge, o.ID)
	if err != nil {
		return err
	}
	p.expectTunnel(o.ID, overlayCrypt, o.Peers)
	return changePeers(h, have, o.Peers, func(peer network.Peer) []*netlink.Neigh { return cryptEntries(l, bridge, peer) })
}

// sameCrypt reports whether a device is that of the overlay, held by the keeper and
// in use.
func (p *Plane) sameCrypt(l netlink.Link, o *network.Overlay) bool {
	t, held := p.keeper.Tap(o.ID)
	return held && t.Index == l.Attrs().Index && t.VNI == o.VNI && l.Attrs().MTU == o.MTU && l.Attrs().Flags&net.FlagUp != 0 && l.Attrs().MasterIndex != 0
}

// newCrypt makes the device. There is none that the keeper does not hold.
func (p *Plane) newCrypt(h *netlink.Handle, o *network.Overlay) (netlink.Link, error) {
	if err := p.keeper.DropTap(o.ID); err != nil {
		return nil, err
	}
	fd := -1
	err := p.onThread(func() error {
		ns, err := os.Open(p.overlayPath(o.ID))
		if err != nil {
			return err
		}
		defer ns.Close() //nolint:errcheck // nothing was written
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter its namespace: %w", err)
		}
		fd, err = openTap(overlayCrypt)
		return err
	})
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByName(overlayCrypt)
	if err == nil {
		err = setUpCrypt(h, l, o.MTU)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if err := p.keeper.AddTap(keeper.Tap{Overlay: o.ID, Index: l.Attrs().Index, VNI: o.VNI}, fd); err != nil {
		return nil, err
	}
	return h.LinkByName(overlayCrypt)
}

// setUpCrypt joins the device to the bridge. It gets only what is for a known
// endpoint; neighbours are answered for by the bridge.
func setUpCrypt(h *netlink.Handle, l netlink.Link, mtu int) error {
	bridge, err := h.LinkByName(overlayBridge)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return h.LinkSetMTU(l, mtu) },
		func() error { return h.LinkSetMaster(l, bridge) },
		func() error { return h.LinkSetLearning(l, false) },
		func() error { return h.LinkSetBrNeighSuppress(l, true) },
		func() error { return h.LinkSetFlood(l, false) },
		func() error { return h.LinkSetUp(l) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// tunDevice makes TUN and TAP devices.
const tunDevice = "/dev/net/tun"

// openTap makes a TAP device in the thread's namespace that takes and gives frames
// as large as the kernel has them. It goes when the file is closed.
func openTap(name string) (fd int, err error) {
	fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s, which encrypted networks need: %w", tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
	}
	if err == nil {
		size := int32(crypt.VnetHeader)
		err = ioctlPointer(fd, unix.TUNSETVNETHDRSZ, unsafe.Pointer(&size))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make a TAP device: %w", err)
	}
	return fd, nil
}

func ioctlPointer(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// cryptEntries are what the bridge knows of a peer: that its frames go to the
// device, and who has its address.
func cryptEntries(l, bridge netlink.Link, p network.Peer) []*netlink.Neigh {
	mac := p.MAC()
	all := []*netlink.Neigh{
		{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER | ntfSticky, State: netlink.NUD_NOARP, HardwareAddr: mac},
	}
	for _, a := range []netip.Addr{p.Address, p.Address6} {
		if a.IsValid() {
			all = append(all, &netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: mac, IP: a.AsSlice()})
		}
	}
	return all
}

// cryptPieces is of how many packets what leaves an interface at once may be: as
// many as fit into one message to the socket. 0: the interface is in no encrypted
// overlay.
func (p *Plane) cryptPieces(f *network.Interface) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Overlay == "" || !p.encrypted[f.Overlay] {
		return 0
	}
	return crypt.Pieces(f.MTU)
}

// noteEncrypted keeps which overlays are encrypted, for their interfaces.
func (p *Plane) noteEncrypted(c *network.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.encrypted = map[string]bool{}
	for id, o := range c.Overlays {
		p.encrypted[id] = o.Encrypted
	}
}

// readCryptPeers reads the peers back, as far as the kernel knows them; their nodes
// are what the keeper was told.
func (p *Plane) readCryptPeers(h *netlink.Handle, l, bridge netlink.Link, id string) ([]network.Peer, error) {
	fdb, err := whole(func() ([]netlink.Neigh, error) { return h.NeighList(l.Attrs().Index, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list the bridge's forwarding database: %w", err)
	}
	believed := p.cryptNodes[id]
	byMAC := map[string]network.Peer{}
	for _, n := range fdb {
		if n.State&netlink.NUD_NOARP != 0 && n.MasterIndex == bridge.Attrs().Index {
			byMAC[n.HardwareAddr.String()] = network.Peer{Node: believed[crypt.MAC(n.HardwareAddr)]}
		}
	}
	if err := readNeighbours(h, bridge, byMAC); err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(byMAC), network.Peer.Compare), nil
}

// setCrypt tells what protects packets what overlays there are now, and with which
// keys they are to be.
func (p *Plane) setCrypt(now, to *network.Config, f *failures) {
	settings := keeper.Settings{Local: now.Underlay.Local, Send: to.Keys.Send}
	for _, k := range to.Keys.All {
		settings.Keys = append(settings.Keys, crypt.Key{ID: k.ID, Secret: k.Secret})
	}
	peers := map[string]keeper.Peers{}
	nodes := map[string]map[crypt.MAC]netip.Addr{}
	for id, o := range now.Overlays {
		if !o.Encrypted {
			continue
		}
		if o.Unknown { // as it is
			nodes[id] = p.cryptNodes[id]
		} else {
			nodes[id] = make(map[crypt.MAC]netip.Addr, len(o.Peers))
			for _, peer := range o.Peers {
				nodes[id][crypt.MAC(peer.MAC())] = peer.Node
			}
		}
		if len(nodes[id]) > 0 {
			peers[id] = keeper.Peers{VNI: o.VNI, Nodes: nodes[id]}
		}
	}
	p.cryptNodes = nodes
	err := p.keeper.SetCrypt(settings, peers)
	if len(peers) == 0 {
		err = errors.Join(err, p.keeper.CloseCrypt())
	}
	f.add(network.RulesItem, err)
}

// missKeys says which overlays have nodes to talk to, and no keys.
func (p *Plane) missKeys(to *network.Config, f *failures) {
	if len(to.Keys.All) > 0 {
		return
	}
	for id, nodes := range p.cryptNodes {
		if o := to.Overlays[id]; o != nil && o.Encrypted && len(nodes) > 0 {
			f.add(network.TunnelItem(id), network.ErrNoKeys)
		}
	}
}

// KeeperStatus returns what the keeper has carried of encrypted overlays since it
// began, and how many keepers have ended by themselves since the daemon did.
func (p *Plane) KeeperStatus() (keeper.Status, uint64) { return p.keeper.Status() }
