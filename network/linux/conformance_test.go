package linux

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

func TestConformance(t *testing.T) { networktest.Dataplane(t, harness("")) }

// TestConformanceNFTables is what differs on hosts without eBPF.
func TestConformanceNFTables(t *testing.T) { networktest.Balancers(t, harness(BalancerNFTables)) }

func harness(balancer string) func(t *testing.T) *networktest.Harness {
	return func(t *testing.T) *networktest.Harness {
		w := newWorld(t)
		w.balancer = balancer
		p := w.plane("")
		h := &networktest.Harness{Plane: p}
		h.Reopen = func() network.Dataplane {
			w.kill(p)
			p = w.plane("")
			return p
		}
		h.Observe = func() *network.Config { return w.observe(p) }
		h.Ask = func(sandbox, name string, v6 bool) networktest.Answer { return w.resolve(p, sandbox, name, v6) }
		h.Occupy = func(k network.PortKey) func() {
			var l net.Listener
			w.in(w.host, func() {
				var err error
				l, err = net.Listen(string(k.Protocol), k.Host.String())
				w.ok(err)
			})
			return func() { w.ok(l.Close()) }
		}
		h.Damage = func(device string) {
			w.in(w.host, func() {
				if l, err := netlink.LinkByName(device); err == nil {
					w.ok(netlink.LinkDel(l))
				}
			})
		}
		h.Identity = func(id string) string {
			var s unix.Stat_t
			w.ok(unix.Stat(p.Path(id), &s))
			return fmt.Sprint(s.Ino)
		}
		return h
	}
}

// observe reads all that networktest.Visible keeps, from the kernel alone.
func (w *world) observe(p *Plane) *network.Config {
	w.t.Helper()
	c := (*network.Config)(nil).Clone()
	bridges := map[int]string{}
	w.in(w.host, func() {
		h, err := netlink.NewHandle()
		w.ok(err)
		defer h.Close()
		links, err := list(h)
		w.ok(err)
		for _, l := range links {
			if owner, kind, _ := ours(l.Attrs().Alias); owner == p.owner && kind == "bridge" && l.Attrs().Flags&net.FlagUp != 0 {
				b := &network.Bridge{Device: l.Attrs().Name, MTU: l.Attrs().MTU, Addresses: w.addresses(l)}
				c.Bridges[b.Device], bridges[l.Attrs().Index] = b, b.Device
			}
		}
	})
	entries, err := os.ReadDir(p.dir)
	w.ok(err)
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), network.OverlayPrefix); ok {
			c.Overlays[id] = w.observeOverlay(p, id)
			continue
		}
		c.Sandboxes[e.Name()] = w.observeSandbox(p, e.Name(), bridges)
	}
	w.observePorts(p, c)
	w.observeBalancers(p, c)
	w.observeMesh(p, c)
	return c
}

// observeMesh reads the mesh's ports and where they lead by IPv4, from its table.
func (w *world) observeMesh(p *Plane, c *network.Config) {
	w.t.Helper()
	conn, err := p.connect()
	w.ok(err)
	t := p.meshTable()
	protocols := map[byte]network.Protocol{unix.IPPROTO_TCP: network.TCP, unix.IPPROTO_UDP: network.UDP}
	for _, name := range []string{portsMap(false), refusedMap(false)} {
		elements, err := conn.GetSetElements(&nftables.Set{Table: t, Name: name})
		if err != nil {
			return // no table
		}
		for _, e := range elements {
			m := &network.MeshPort{MeshKey: network.MeshKey{Protocol: protocols[e.Key[0]], Port: uint16(e.Key[4])<<8 | uint16(e.Key[5])}}
			if c.MeshPorts[m.MeshKey] != nil {
				w.t.Errorf("port %s is both led and refused", m.MeshKey)
			}
			if c.MeshPorts[m.MeshKey] = m; name == refusedMap(false) {
				continue
			}
			backends, err := conn.GetSetElements(&nftables.Set{Table: t, Name: chainOf(m.MeshKey, false)})
			w.ok(err)
			for _, b := range backends {
				a, _ := netip.AddrFromSlice(b.Val)
				m.Backends = append(m.Backends, a)
			}
			slices.SortFunc(m.Backends, netip.Addr.Compare)
			rules, err := conn.GetRules(t, &nftables.Chain{Name: chainOf(m.MeshKey, false)})
			w.ok(err)
			for _, x := range rules[len(rules)-1].Exprs {
				if i, ok := x.(*expr.Immediate); ok && len(i.Data) >= 2 {
					m.Target = uint16(i.Data[0])<<8 | uint16(i.Data[1])
				}
			}
		}
	}
}

func (w *world) addresses(l netlink.Link) []netip.Prefix {
	w.t.Helper()
	h, err := netlink.NewHandle()
	w.ok(err)
	defer h.Close()
	a, err := addresses(h, l)
	w.ok(err)
	return a
}

func (w *world) observeSandbox(p *Plane, id string, bridges map[int]string) *network.Sandbox {
	w.t.Helper()
	s := &network.Sandbox{ID: id}
	peers, names := map[string]int{}, map[int]string{}
	overlays := w.overlayEnds(p)
	w.in(p.Path(id), func() {
		links, err := whole(netlink.LinkList)
		w.ok(err)
		for _, l := range links {
			if l.Type() != "veth" || l.Attrs().Flags&net.FlagUp == 0 {
				continue
			}
			s.Interfaces = append(s.Interfaces, network.Interface{
				Name: l.Attrs().Name, MAC: l.Attrs().HardwareAddr.String(), MTU: l.Attrs().MTU, Addresses: w.addresses(l),
			})
			peers[l.Attrs().Name], names[l.Attrs().Index] = l.Attrs().ParentIndex, l.Attrs().Name
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		w.ok(err)
		for _, r := range routes {
			if gw, ok := netip.AddrFromSlice(r.Gw); ok && gw.Unmap().Is4() {
				s.Gateway4 = gw.Unmap()
			} else if ok {
				s.Gateway6 = gw
			} else if r.Protocol != unix.RTPROT_KERNEL {
				for i := range s.Interfaces {
					if f := &s.Interfaces[i]; f.Name == names[r.LinkIndex] {
						f.Routes = append(f.Routes, prefix(r.Dst))
					}
				}
			}
		}
	})
	w.in(w.host, func() {
		for i := range s.Interfaces {
			if end, ok := overlays[id+" "+s.Interfaces[i].MAC]; ok {
				s.Interfaces[i].HostName, s.Interfaces[i].Overlay = end[0], end[1]
				continue
			}
			l, err := netlink.LinkByIndex(peers[s.Interfaces[i].Name])
			w.ok(err)
			s.Interfaces[i].HostName, s.Interfaces[i].Bridge = l.Attrs().Name, bridges[l.Attrs().MasterIndex]
		}
	})
	return s
}

// overlayEnds finds the ends of pairs in overlays, by the sandbox and the address
// of the other end; only those that are up, on the bridge.
func (w *world) overlayEnds(p *Plane) map[string][2]string {
	w.t.Helper()
	found := map[string][2]string{}
	entries, err := os.ReadDir(p.dir)
	w.ok(err)
	for _, e := range entries {
		id, ok := strings.CutPrefix(e.Name(), network.OverlayPrefix)
		if !ok {
			continue
		}
		ends := map[string][2]string{} // name and index of the other end
		w.in(p.overlayPath(id), func() {
			links, err := whole(netlink.LinkList)
			w.ok(err)
			for _, l := range links {
				if _, kind, sandbox := ours(l.Attrs().Alias); kind == "sandbox" && l.Attrs().MasterIndex != 0 && l.Attrs().Flags&net.FlagUp != 0 {
					ends[l.Attrs().Name] = [2]string{sandbox, fmt.Sprint(l.Attrs().ParentIndex)}
				}
			}
		})
		for name, end := range ends {
			if !bound(p.Path(end[0])) {
				continue // on its way out
			}
			w.in(p.Path(end[0]), func() {
				var index int
				_, err := fmt.Sscan(end[1], &index)
				w.ok(err)
				l, err := netlink.LinkByIndex(index)
				w.ok(err)
				found[end[0]+" "+l.Attrs().HardwareAddr.String()] = [2]string{name, id}
			})
		}
	}
	return found
}

// observeOverlay reads an overlay from the kernel alone.
func (w *world) observeOverlay(p *Plane, id string) *network.Overlay {
	w.t.Helper()
	o := &network.Overlay{ID: id, VNI: 4096}
	w.in(p.overlayPath(id), func() {
		b := w.link(overlayBridge)
		o.MTU, o.Addresses = b.Attrs().MTU, w.addresses(b)
		l, err := netlink.LinkByName(overlayTunnel)
		if err != nil {
			w.observeCrypt(p, o)
			return
		}
		o.VNI = uint32(l.(*netlink.Vxlan).VxlanId)
		h, err := netlink.NewHandle()
		w.ok(err)
		defer h.Close()
		o.Peers, err = readPeers(h, l)
		w.ok(err)
		static := 0
		fdb, err := h.NeighList(l.Attrs().Index, unix.AF_BRIDGE)
		w.ok(err)
		for _, n := range fdb {
			if n.Flags&netlink.NTF_SELF == 0 && n.State&netlink.NUD_NOARP != 0 && n.HardwareAddr[0] == 2 && n.HardwareAddr[1] == 0x42 {
				static++
			}
		}
		if static != len(o.Peers) {
			w.t.Errorf("the bridge has %d static entries for %d peers", static, len(o.Peers))
		}
	})
	return o
}

// observeCrypt reads an encrypted overlay's peers; their nodes are only in the
// keeper. The thread is in the overlay's namespace.
func (w *world) observeCrypt(p *Plane, o *network.Overlay) {
	w.t.Helper()
	l, err := netlink.LinkByName(overlayCrypt)
	if err != nil {
		o.VNI = 0
		return
	}
	h, err := netlink.NewHandle()
	w.ok(err)
	defer h.Close()
	tap, _ := p.keeper.Tap(o.ID)
	o.Encrypted, o.VNI = true, tap.VNI
	o.Peers, err = p.readCryptPeers(h, l, w.link(overlayBridge), o.ID)
	w.ok(err)
}

func (w *world) observePorts(p *Plane, c *network.Config) {
	w.t.Helper()
	conn, err := p.connect()
	w.ok(err)
	led := map[netip.AddrPort]bool{}
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		b := &tableBuilder{c: conn, family: f, t: &nftables.Table{Family: f, Name: p.table}}
		w.ok(b.declareMaps())
		elements, err := conn.GetSetElements(b.byPort)
		if err != nil {
			continue // no table
		}
		any4 := netip.IPv4Unspecified()
		for _, e := range elements {
			size := len(e.Val) - 4
			target, _ := netip.AddrFromSlice(e.Val[:size])
			k := network.PortKey{Protocol: network.TCP, Host: netip.AddrPortFrom(any4, uint16(e.Key[4])<<8|uint16(e.Key[5]))}
			c.Ports[k] = &network.Port{PortKey: k, Target: netip.AddrPortFrom(target, uint16(e.Val[size])<<8|uint16(e.Val[size+1]))}
			led[c.Ports[k].Target] = true
		}
		open, err := conn.GetSetElements(b.open)
		w.ok(err)
		for _, e := range open {
			size := len(e.Key) - 8
			a, _ := netip.AddrFromSlice(e.Key[:size])
			host := netip.AddrPortFrom(a, uint16(e.Key[size+4])<<8|uint16(e.Key[size+5]))
			if !led[host] { // else it is so for trusted devices
				k := network.PortKey{Protocol: network.TCP, Host: host}
				c.Ports[k] = &network.Port{PortKey: k, Target: host, Open: true}
			}
		}
	}
}
