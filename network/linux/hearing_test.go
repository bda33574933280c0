package linux

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// What the filter drops is no damage to anything, and of what is damage it drops
// nothing.
func TestHearing(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := hearLess(pair[1]); err != nil {
		t.Fatal(err)
	}
	heard := func(m []byte) bool {
		if _, err := unix.Write(pair[0], m); err != nil {
			t.Fatal(err)
		}
		_, err := unix.Read(pair[1], make([]byte, 4096))
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Fatal(err)
		}
		return err == nil
	}
	node, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	peer := network.Peer{Address: netip.MustParseAddr("10.0.1.9"), Node: node}
	have := &network.Config{
		Bridges: map[string]*network.Bridge{"gw0": {}}, Overlays: map[string]*network.Overlay{"o": {}},
		Mesh: &network.Mesh{}, MeshPorts: map[network.MeshKey]*network.MeshPort{{Port: 80}: {Devices: []string{"up0"}}},
	}
	p := &Plane{have: have, owner: defaultOwner, veths: map[string]bool{"v0": true}}
	w := &overlayWatch{id: "o", tunnel: overlayTunnel, peers: map[string]netip.Addr{string(peer.MAC()): node, string(peer.Address.AsSlice()): node}}
	p.watches = map[string]*overlayWatch{"o": w}
	one := func(l ...uint32) uint32 { return l[rand.IntN(len(l))] }
	counts := map[bool]int{}
	for range 20000 {
		m := messages{}
		switch kind := uint16(one(unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, unix.RTM_NEWADDR, unix.RTM_DELADDR,
			unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE)); kind {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			l := linkHeader(7, one(0, unix.IFF_UP)|one(0, unix.IFF_LOWER_UP)|one(0, unix.IFF_BROADCAST))
			l[0] = byte(one(unix.AF_UNSPEC, unix.AF_BRIDGE, unix.AF_INET6))
			m.begin("", kind, 0, l...)
			m.text(unix.IFLA_IFNAME, []string{"v0", "gw0", "other", "legion-mesh", overlayBridge, overlayTunnel, meshPort}[rand.IntN(7)])
			if one(0, 1) == 1 {
				m.number(unix.IFLA_MASTER, 3)
			}
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			m.begin("", kind, 0, byte(one(unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6)), 0, 0, 0, 1, 0, 0, 0, 0, 0, byte(one(0, unix.NTF_SELF, unix.NTF_MASTER)), 0)
			m.attr(unix.NDA_LLADDR, [][]byte{peer.MAC(), {2, 0x42, 1, 1, 1, 1}}[rand.IntN(2)]...)
			m.attr(unix.NDA_DST, []netip.Addr{node, elsewhere, peer.Address}[rand.IntN(3)].AsSlice()...)
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			m.begin("", kind, 0, byte(one(unix.AF_INET, unix.AF_INET6)), 24, 0, byte(one(unix.RT_SCOPE_LINK, unix.RT_SCOPE_UNIVERSE)), 1, 0, 0, 0)
		default:
			m.begin("", kind, 0, make([]byte, unix.SizeofRtMsg)...)
			m.number(unix.RTA_TABLE, one(meshTables+p.meshNumber(), unix.RT_TABLE_MAIN))
		}
		m.end()
		p.addrsChanged.Store(false)
		var damage bool
		received(m.buf, func(kind uint16, _ uint32, d []byte) bool {
			// Devices are looked for by name: what is told of those that matter is kept.
			l, ok := readLink(d)
			switch {
			case kind != unix.RTM_NEWLINK && kind != unix.RTM_DELLINK:
				damage = p.routeDrift(kind, d) || p.overlayDrift(w, kind, d)
			case ok && l.name != "other":
				damage = kind == unix.RTM_DELLINK || !l.up || !l.master && l.name != "gw0" && l.name != overlayBridge && l.name != "legion-mesh" ||
					l.name == "legion-mesh" && !l.carries
			}
			return true
		})
		h := heard(m.buf)
		if damage = damage || p.addrsChanged.Load(); damage && !h {
			t.Fatalf("damage is not heard of: kind %d, % x", binary.NativeEndian.Uint16(m.buf[4:]), m.buf)
		}
		counts[h]++
	}
	if counts[false] < counts[true]/4 {
		t.Errorf("heard, and not: %v", counts)
	}
}
