package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// wired is a config of a sandbox with an interface of each kind: on a bridge whose
// ports are isolated, without IPv6, and in an overlay, with it.
func wired() *network.Config {
	c := (&network.Config{Rules4: true, Rules6: true, Forward: true}).Clone()
	c.Bridges["gw0"] = &network.Bridge{Device: "gw0", Addresses: pfx("172.18.0.1/16"), Isolated: true}
	c.Overlays["net1"] = &network.Overlay{ID: "net1", VNI: 4097, MTU: 1400, Addresses: pfx("10.0.1.1/24", "fd01::1/64")}
	c.Sandboxes["a"] = &network.Sandbox{ID: "a", Resolver: &network.Resolver{}, Gateway4: netip.MustParseAddr("172.18.0.1"), Interfaces: []network.Interface{
		{Name: "eth0", HostName: "veth0", Overlay: "net1", MTU: 1400, MAC: "02:42:0a:00:01:02", Addresses: pfx("10.0.1.2/24", "fd01::2/64")},
		{Name: "eth1", HostName: "veth1", Bridge: "gw0", MAC: "02:42:ac:12:00:02", Addresses: pfx("172.18.0.2/16"), Sysctls: []string{"net.ipv4.conf.IFNAME.forwarding=1"}},
	}}
	return c
}

// What a pair is, also where one was left half-made by a daemon that was killed.
func TestSandboxInterfaces(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := wired()
	empty := c.Clone()
	clear(empty.Sandboxes)
	w.ok(p.Set(t.Context(), empty))
	for _, at := range []struct{ ns, name string }{{p.overlayPath("net1"), "veth0"}, {w.host, "veth1"}} {
		w.in(at.ns, func() {
			w.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: at.name}, PeerName: "left"}))
		})
	}
	w.ok(p.Set(t.Context(), c))
	port := func(ns, name, bridge string, mtu int, isolated bool) {
		w.in(ns, func() {
			l := w.link(name)
			a := l.Attrs()
			info, err := netlink.LinkGetProtinfo(l)
			w.ok(err)
			if a.MTU != mtu || a.NumTxQueues != 1 || a.NumRxQueues != 1 || a.Flags&net.FlagUp == 0 || a.MasterIndex != w.link(bridge).Attrs().Index ||
				a.Alias != p.alias("sandbox", "a") || !info.Hairpin || info.Isolated != isolated {
				t.Errorf("%s: %+v, %+v", name, a, info)
			}
			if list, err := netlink.AddrList(l, netlink.FAMILY_ALL); err != nil || len(list) > 0 {
				t.Errorf("%s has addresses: %v, %v", name, list, err)
			}
		})
	}
	port(p.overlayPath("net1"), "veth0", overlayBridge, 1400, false)
	port(w.host, "veth1", "gw0", 1500, true)
	w.in(p.Path("a"), func() {
		for _, f := range c.Sandboxes["a"].Interfaces {
			l := w.link(f.Name)
			if a := l.Attrs(); a.HardwareAddr.String() != f.MAC || a.NumTxQueues != 1 || a.Flags&net.FlagUp == 0 {
				t.Errorf("%s: %+v", f.Name, a)
			}
			list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			w.ok(err)
			for i := range list {
				if list[i].IP.To4() != nil && list[i].Broadcast == nil || list[i].Flags&unix.IFA_F_TENTATIVE != 0 && !list[i].IP.IsLinkLocalUnicast() {
					t.Errorf("%s: %+v", f.Name, list[i])
				}
			}
			if v6 := len(list) > 1; v6 != hasIPv6(&f) {
				t.Errorf("%s: %v", f.Name, list)
			}
		}
		for path, want := range map[string]string{
			"ipv6/conf/default/disable_ipv6": "0", "ipv6/conf/eth0/disable_ipv6": "0", "ipv6/conf/eth1/disable_ipv6": "1",
			"ipv4/conf/eth1/forwarding": "1", "ipv4/ip_unprivileged_port_start": "0",
		} {
			s, err := openSetting(unix.AT_FDCWD, "/proc/sys/net/"+path, unix.O_RDONLY)
			w.ok(err)
			if got, err := s.read(); got != want || err != nil {
				t.Errorf("%s is %s, not %s: %v", path, got, want, err)
			}
			s.close()
		}
	})
}

// An interface is of use as soon as a Set has made it: what is sent at once is not lost.
// What a link is in a list is what the kernel takes it for; to ask for one by name
// would change that.
func TestSandboxCarries(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := wired()
	empty := c.Clone()
	clear(empty.Sandboxes)
	for i := range 10 {
		next := c.Clone()
		for j := range 4 {
			s := *c.Sandboxes["a"]
			s.ID, s.Interfaces = fmt.Sprintf("a%d-%d", i, j), slices.Clone(s.Interfaces)
			for k := range s.Interfaces {
				f := &s.Interfaces[k]
				f.HostName, f.Addresses = fmt.Sprintf("v%d-%d-%d", i, j, k), pfx(fmt.Sprintf("10.1.%d.%d/24", k, 2+j))
			}
			s.Gateway4 = netip.MustParseAddr("10.1.1.1")
			next.Sandboxes[s.ID] = &s
		}
		delete(next.Sandboxes, "a")
		w.ok(p.Set(t.Context(), next))
		for id := range next.Sandboxes {
			w.in(p.Path(id), func() {
				links, err := netlink.LinkList()
				w.ok(err)
				for _, l := range links {
					if a := l.Attrs(); l.Type() == "veth" && a.OperState != netlink.OperUp {
						t.Errorf("%s of %s is %s", a.Name, id, a.OperState)
					}
				}
			})
		}
		w.ok(p.Set(t.Context(), empty))
	}
}

// The error says what the kernel did not take, and nothing is left.
func TestSandboxRefused(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := wired()
	c.Sandboxes["a"].Gateway4 = netip.MustParseAddr("10.77.0.1") // no interface leads there
	err := p.Set(t.Context(), c)
	var se *network.SetError
	if !errors.As(err, &se) || !errors.Is(se.Items[network.SandboxItem("a")], unix.ENETUNREACH) || !strings.Contains(err.Error(), "default route via 10.77.0.1") {
		t.Errorf("got %v", err)
	}
	if bound(p.Path("a")) {
		t.Error("a namespace is left")
	}
	w.ok(p.Set(t.Context(), wired()))
}

// A change of rules in a sandbox is made as a whole or not at all; the error says
// which part was refused.
func TestTransactionRefused(t *testing.T) {
	w := newWorld(t)
	w.in(w.host, func() {
		x := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "t"}
		var bad transaction
		bad.fresh(x, true)
		bad.rule(x, "nowhere", verdict(1))
		if err := bad.commit(); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "rule in chain nowhere") {
			t.Errorf("got %v", err)
		}
		var one, two, three transaction
		one.fresh(x, true)
		w.ok(one.commit())
		two.fresh(x, true)
		if err := two.commit(); !errors.Is(err, unix.EEXIST) {
			t.Errorf("a table that is there: %v", err)
		}
		three.fresh(x, false)
		three.drop(x)
		w.ok(three.commit())
		c, err := nftables.New()
		w.ok(err)
		if l, err := c.ListTablesOfFamily(x.Family); err != nil || len(l) > 0 {
			t.Errorf("left: %v, %v", l, err)
		}
	})
}

// What a Set removes is not taken for damage, while it is under way or later: the
// next need not look at all that is there.
func TestRemovalIsNoDamage(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := wired()
	w.ok(p.Set(t.Context(), c))
	var heard *os.File
	w.in(w.host, func() {
		var err error
		heard, err = subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
		w.ok(err)
	})
	alarms := make(chan struct{}, 100)
	var watch sync.WaitGroup
	watch.Go(func() { _ = receive(heard, func() { alarms <- struct{}{} }, p.routeDrift) })
	defer watch.Wait()
	defer heard.Close()
	for range 5 {
		w.ok(p.Set(t.Context(), c))
		for _, keep := range []int{1, 0} { // an interface goes, and then the sandbox
			less := c.Clone()
			s := *c.Sandboxes["a"]
			s.Interfaces = s.Interfaces[:keep]
			s.Gateway4 = netip.Addr{}
			if less.Sandboxes["a"] = &s; keep == 0 {
				delete(less.Sandboxes, "a")
			}
			w.ok(p.Set(t.Context(), less))
		}
		for there := true; there; { // the kernel takes its time
			w.in(p.overlayPath("net1"), func() {
				_, err := netlink.LinkByName("veth0")
				there = !isNotFound(err)
			})
		}
		w.in(w.host, func() {
			other := address(netip.MustParsePrefix("172.18.0.9/32"))
			w.ok(netlink.AddrAdd(w.link("gw0"), other))
			w.ok(netlink.AddrDel(w.link("gw0"), other))
		})
		<-alarms // for that one: all that was heard before is dealt with
		if n := len(alarms); n != 0 || p.stale.Load() {
			t.Errorf("%d false alarms, in an overlay: %v", n, p.stale.Load())
		}
	}
}

// Whatever is heard, it is understood or not, and no more.
func FuzzDrift(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, unix.RTM_DELLINK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	p := &Plane{have: &network.Config{Mesh: &network.Mesh{}}}
	o := &overlayWatch{tunnel: overlayTunnel, peers: map[string]netip.Addr{"123456": netip.IPv6Unspecified()}}
	f.Fuzz(func(_ *testing.T, d []byte) {
		for kind := range uint16(256) {
			p.routeDrift(kind, d)
			p.overlayDrift(o, kind, d)
		}
		received(d, func(kind uint16, _ uint32, d []byte) bool {
			p.rulesDrift(kind, d)
			return true
		})
	})
}
