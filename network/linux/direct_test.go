package linux

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	dnet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"github.com/legion-swarm/legion/network"
)

const bridgeOption = "com.docker.network.bridge."

// reach is a way from one place to another, and what the server then sees.
type reach struct{ what, from, to, seen string }

// expect asks all at once: who gets no answer waits.
func (w *world) expect(l ...reach) {
	w.t.Helper()
	got := make([]string, len(l))
	var wg sync.WaitGroup
	for i, r := range l {
		wg.Go(func() {
			if host, ok := strings.CutPrefix(r.to, "ping "); ok {
				got[i] = w.echoed(r.from, host)
			} else {
				got[i] = w.ask(r.from, r.to)
			}
		})
	}
	wg.Wait()
	for i, r := range l {
		if got[i] != r.seen {
			w.t.Errorf("%s: %q, not %q", r.what, got[i], r.seen)
		}
	}
}

// echoed asks for an echo by ICMP, and returns who answers.
func (w *world) echoed(ns, host string) (answer string) {
	w.t.Helper()
	to := netip.MustParseAddr(host)
	kind, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		kind, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	packet := []byte{request, 0, 0, 0, 'p', 'i', 0, 1}
	if to.Is4() { // of IPv6, the kernel adds the sum
		var sum uint32
		for i := 0; i < len(packet); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(packet[i:]))
		}
		binary.BigEndian.PutUint16(packet[2:], ^uint16(sum+sum>>16))
	}
	answer = "error"
	w.in(ns, func() {
		c, err := net.ListenPacket(kind, "")
		w.ok(err)
		defer c.Close()
		buf := make([]byte, 128)
		for range 3 { // as ping does: devices that are just up may lose one
			_, err = c.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()})
			w.ok(err)
			w.ok(c.SetReadDeadline(time.Now().Add(time.Second)))
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					break
				}
				if n == len(packet) && buf[0] == reply && string(buf[4:n]) == string(packet[4:]) {
					answer = from.String()
					return
				}
			}
		}
	})
	return answer
}

// direct is a host with a network that has the options, one more, and routes to both
// from outside. Container "a" in the first publishes port 80 as 8080, and has port 81;
// "b" is in the other.
type direct struct {
	*world
	*network.Networks
	p    *Plane
	a, b *network.Joined
}

func newDirect(t *testing.T, options map[string]string, change ...func(*network.Options)) *direct {
	t.Helper()
	w := newWorld(t)
	p := w.plane("")
	d := &direct{world: w, Networks: w.node(p, change...), p: p}
	w.ok(d.Keep(t.Context(), nil))
	d.create("m", "10.5.0.0/24", "fd05::/64", options)
	d.create("other", "10.6.0.0/24", "fd06::/64", nil)
	w.in(w.outside, func() {
		for _, s := range []string{"10.5.0.0/24", "10.6.0.0/24"} {
			w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(s)), Gw: net.IPv4(10, 99, 0, 1)}))
		}
		for _, s := range []string{"fd05::/64", "fd06::/64"} {
			w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(s)), Gw: net.ParseIP("fd99::1")}))
		}
	})
	d.a, d.b = d.join("a", "8080", "m"), d.join("b", "", "other")
	w.serve(d.a.Path, ":80")
	w.serve(d.a.Path, ":81")
	w.serve(w.outside, ":9000")
	return d
}

func (d *direct) create(name, subnet4, subnet6 string, options map[string]string) {
	d.t.Helper()
	_, err := d.Create(d.t.Context(), &dnet.CreateRequest{
		Name: name, EnableIPv6: new(true), Options: options,
		IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix(subnet4)}, {Subnet: netip.MustParsePrefix(subnet6)}}},
	})
	d.ok(err)
}

func (d *direct) join(id, port string, nets ...string) *network.Joined {
	d.t.Helper()
	ports := dnet.PortMap{}
	if port != "" {
		ports[dnet.MustParsePort("80/tcp")] = []dnet.PortBinding{{HostPort: port}}
	}
	asked := map[string]*dnet.EndpointSettings{}
	for _, name := range nets {
		asked[name] = nil
	}
	j, err := d.Join(d.t.Context(), id, asked, ports)
	d.ok(err)
	d.t.Cleanup(func() {
		if err := d.Leave(context.WithoutCancel(d.t.Context()), id); err != nil {
			d.t.Error(err)
		}
	})
	return j
}

// Who reaches what, by the network's options.
func TestGatewayModes(t *testing.T) {
	modes := func(mode string) map[string]string {
		return map[string]string{bridgeOption + "gateway_mode_ipv4": mode, bridgeOption + "gateway_mode_ipv6": mode}
	}
	const no = "error"
	for _, c := range []struct {
		name    string
		options map[string]string
		// What is seen by a server in the container that is asked from outside for its
		// published port, another, or the host's port; and from another container's
		// network. out is what a server outside sees of the container.
		published4, published6, other, mapped4, mapped6, ping4, ping6 string
		neighbour, neighbourOther, neighbourMapped, out4, out6        string
	}{
		{
			"nat", modes("nat"), no, no, no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.99.0.1", "fd99::1",
		},
		{
			"nat-unprotected", modes("nat-unprotected"), "10.99.0.2", "fd99::2", "10.99.0.2", "10.99.0.2", "fd99::2", "10.5.0.2", "fd05::2",
			no, no, "10.5.0.1", "10.99.0.1", "fd99::1",
		},
		{
			"routed", modes("routed"), "10.99.0.2", "fd99::2", no, no, no, "10.5.0.2", "fd05::2",
			"10.5.0.1", no, no, "10.5.0.2", "fd05::2",
		},
		{
			"routed by IPv6", map[string]string{bridgeOption + "gateway_mode_ipv6": "routed"}, no, "fd99::2", no, "10.99.0.2", no, no, "fd05::2",
			no, no, "10.5.0.1", "10.99.0.1", "fd05::2",
		},
		{
			"a trusted device", map[string]string{bridgeOption + "trusted_host_interfaces": "nowhere0:up0"}, "10.99.0.2", "fd99::2", no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.99.0.1", "fd99::1",
		},
		{
			"another trusted device", map[string]string{bridgeOption + "trusted_host_interfaces": "nowhere0"}, no, no, no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.99.0.1", "fd99::1",
		},
		{
			"no masquerading", map[string]string{bridgeOption + "enable_ip_masquerade": "false"}, no, no, no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.5.0.2", "fd05::2",
		},
		{
			"published on one address", map[string]string{bridgeOption + "host_binding_ipv4": "127.0.0.1"}, no, no, no, no, no, no, no,
			no, no, no, "10.99.0.1", "fd99::1",
		},
		{
			"published on all, by IPv4's name", map[string]string{bridgeOption + "host_binding_ipv4": "0.0.0.0"}, no, no, no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.99.0.1", "fd99::1",
		},
		{
			"a source", map[string]string{"com.docker.network.host_ipv4": "10.99.0.7", "com.docker.network.host_ipv6": "fd99::7"}, no, no, no, "10.99.0.2", "fd99::2", no, no,
			no, no, "10.5.0.1", "10.99.0.7", "fd99::7",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDirect(t, c.options)
			if c.options["com.docker.network.host_ipv4"] != "" {
				d.in(d.host, func() { d.address("up0", "10.99.0.7/24", "fd99::7/64") })
			}
			d.expect(
				reach{"published, by its own address", d.outside, "10.5.0.2:80", c.published4},
				reach{"published, by its own address, IPv6", d.outside, "[fd05::2]:80", c.published6},
				reach{"not published", d.outside, "10.5.0.2:81", c.other},
				reach{"the host's port", d.outside, "10.99.0.1:8080", c.mapped4},
				reach{"the host's port, IPv6", d.outside, "[fd99::1]:8080", c.mapped6},
				reach{"echo", d.outside, "ping 10.5.0.2", c.ping4},
				reach{"echo, IPv6", d.outside, "ping fd05::2", c.ping6},
				reach{"published, from another network", d.b.Path, "10.5.0.2:80", c.neighbour},
				reach{"not published, from another network", d.b.Path, "10.5.0.2:81", c.neighbourOther},
				reach{"the host's port, from another network", d.b.Path, "10.99.0.1:8080", c.neighbourMapped},
				reach{"out", d.a.Path, "10.99.0.2:9000", c.out4},
				reach{"out, IPv6", d.a.Path, "[fd99::2]:9000", c.out6},
				reach{"from the host", d.host, "10.5.0.2:81", "10.5.0.1"},
				reach{"nobody else's", d.outside, "10.6.0.2:80", no},
			)
		})
	}
}

// The whole host may allow it.
func TestDirectRouting(t *testing.T) {
	d := newDirect(t, nil, func(o *network.Options) { o.DirectRouting = true })
	d.expect(
		reach{"published, by its own address", d.outside, "10.5.0.2:80", "10.99.0.2"},
		reach{"published, by its own address, IPv6", d.outside, "[fd05::2]:80", "fd99::2"},
		reach{"not published", d.outside, "10.5.0.2:81", "error"},
		reach{"echo", d.outside, "ping 10.5.0.2", "error"},
		reach{"published, from another network", d.b.Path, "10.5.0.2:80", "10.5.0.1"},
		reach{"the host's port", d.outside, "10.99.0.1:8080", "10.99.0.2"},
	)
}

// A container in two networks is reached in the one that is routed, too, though it has
// its way out by the other; and what is shown is what there is.
func TestRoutedBesideAnother(t *testing.T) {
	d := newDirect(t, map[string]string{bridgeOption + "gateway_mode_ipv4": "routed"})
	if got := d.a.Ports[dnet.MustParsePort("80/tcp")]; len(got) != 2 || got[0] != (dnet.PortBinding{HostIP: netip.IPv6Unspecified(), HostPort: "8080"}) ||
		got[1] != (dnet.PortBinding{HostIP: netip.IPv4Unspecified()}) {
		t.Errorf("it is published as %v", got)
	}
	both := d.join("both", "8088", "bridge", "m")
	d.serve(both.Path, ":80")
	address := both.Endpoints["m"].IPAddress.String()
	d.expect(
		reach{"by the host's port", d.outside, "10.99.0.1:8088", "10.99.0.2"},
		reach{"by its own address", d.outside, address + ":80", "10.99.0.2"}, // answers go by the other network
		reach{"by its own address, from the host", d.host, address + ":80", "10.5.0.1"},
	)
	d.ok(d.Disconnect(t.Context(), "both", "bridge", false))
	d.expect(
		reach{"by its own address alone", d.outside, address + ":80", "10.99.0.2"},
		reach{"by the host's port no more", d.outside, "10.99.0.1:8088", "error"},
	)
	d.ok(d.Leave(t.Context(), "both"))
	next := d.join("next", "", "m") // does not publish anything
	d.serve(next.Path, ":80")
	d.expect(reach{"another's port", d.outside, next.Endpoints["m"].IPAddress.String() + ":80", "error"})
}

// A client that goes on sending is not let in once the port is closed.
func TestClosedPortOfUDP(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	c := base()
	routed := *c.Bridges["legion0"]
	routed.Mode4 = network.GatewayRouted
	c.Bridges["legion0"] = &routed
	clear(c.Ports)
	k := network.PortKey{Protocol: network.UDP, Host: netip.MustParseAddrPort("172.17.0.2:53")}
	c.Ports[k] = &network.Port{PortKey: k, Target: k.Host, Sandbox: "a", Open: true}
	w.ok(p.Set(t.Context(), c))
	w.echo(p.Path("a"), "a")
	var client net.Conn
	w.in(w.outside, func() {
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("172.17.0.0/16")), Gw: net.IPv4(10, 99, 0, 1)}))
		var err error
		client, err = net.Dial("udp", k.Host.String())
		w.ok(err)
	})
	defer client.Close()
	ask := func() string {
		buf := make([]byte, 16)
		for range 3 {
			_, _ = client.Write([]byte("?"))
			_ = client.SetReadDeadline(time.Now().Add(time.Second))
			if n, err := client.Read(buf); err == nil {
				return string(buf[:n])
			}
		}
		return "nobody"
	}
	if got := ask(); got != "a" {
		t.Errorf("open: %s answers", got)
	}
	closed := c.Clone()
	delete(closed.Ports, k)
	w.ok(p.Set(t.Context(), closed))
	if got := ask(); got != "nobody" {
		t.Errorf("closed: %s answers", got)
	}
	w.ok(p.Set(t.Context(), c))
	if got := ask(); got != "a" {
		t.Errorf("opened again: %s answers", got)
	}
}

// Networks whose bridge has no address: containers reach each other, and nobody else;
// an address that an administrator gives the bridge stays.
func TestBareBridges(t *testing.T) {
	w := newWorld(t)
	p := w.plane("")
	n := w.node(p)
	d := &direct{world: w, Networks: n, p: p}
	w.ok(n.Keep(t.Context(), nil))
	_, err := n.Create(t.Context(), &dnet.CreateRequest{
		Name: "alone", Internal: true, EnableIPv6: new(true),
		Options: map[string]string{
			bridgeOption + "name": "alone0", bridgeOption + "gateway_mode_ipv4": "isolated", bridgeOption + "gateway_mode_ipv6": "isolated",
		},
		IPAM: &dnet.IPAM{Config: []dnet.IPAMConfig{{Subnet: netip.MustParsePrefix("10.7.0.0/24")}, {Subnet: netip.MustParsePrefix("fd07::/64")}}},
	})
	w.ok(err)
	d.create("yours", "10.8.0.0/24", "fd08::/64", map[string]string{bridgeOption + "name": "yours0", bridgeOption + "inhibit_ipv4": "true"})
	a, b := d.join("a", "", "alone"), d.join("b", "", "alone")
	y := d.join("y", "8080", "yours")
	for _, j := range []*network.Joined{a, b, y} {
		w.serve(j.Path, ":80")
	}
	w.serve(w.host, ":9000")
	w.serve(w.outside, ":9000")
	if e := a.Endpoints["alone"]; e.IPAddress.String() != "10.7.0.1" || e.Gateway.IsValid() || e.IPv6Gateway.IsValid() {
		t.Errorf("an isolated network's endpoint is %+v", e)
	}
	var has []netip.Prefix
	w.in(w.host, func() { has = append(w.addresses(w.link("alone0")), w.addresses(w.link("yours0"))...) })
	if len(has) != 1 || has[0].String() != "fd08::1/64" {
		t.Errorf("the bridges have %v", has)
	}
	d.expect(
		reach{"each other", a.Path, b.Endpoints["alone"].IPAddress.String() + ":80", "10.7.0.1"},
		reach{"each other, IPv6", a.Path, "[" + b.Endpoints["alone"].GlobalIPv6Address.String() + "]:80", "fd07::1"},
		reach{"from the host", w.host, "10.7.0.1:80", "error"},
		reach{"a bridge without an address, from outside", w.outside, "10.99.0.1:8080", "error"},
		reach{"a bridge without an address, out", y.Path, "10.99.0.2:9000", "error"},
		reach{"out by IPv6", y.Path, "[fd99::2]:9000", "fd99::1"},
	)
	// A container that has the right to, and knows the host's MAC address, gets nowhere.
	w.in(a.Path, func() {
		var mac net.HardwareAddr
		w.in(w.host, func() { mac = w.link("alone0").Attrs().HardwareAddr })
		l := w.link("eth0")
		w.ok(netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.IPv4(10, 7, 0, 99), HardwareAddr: mac}))
		w.ok(netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 7, 0, 99), Dst: ipNet(netip.MustParsePrefix("10.99.0.2/32"))}))
	})
	w.in(w.host, func() { // and answers would find it
		w.ok(netlink.RouteAdd(&netlink.Route{LinkIndex: w.link("alone0").Attrs().Index, Dst: ipNet(netip.MustParsePrefix("10.7.0.0/24")), Scope: netlink.SCOPE_LINK}))
	})
	d.expect(reach{"by force", a.Path, "10.99.0.2:9000", "error"})
	w.in(w.host, func() { w.address("yours0", "10.8.0.1/24") })
	p.stale.Store(true)
	d.join("z", "", "alone") // has everything looked at
	d.expect(
		reach{"with the administrator's address, out", y.Path, "10.99.0.2:9000", "10.99.0.1"},
		reach{"with the administrator's address, from outside", w.outside, "10.99.0.1:8080", "10.99.0.2"},
	)
}

// Ports that somebody closes, or opens, in our set are put right.
func TestOpenPortsAreRepaired(t *testing.T) {
	d := newDirect(t, map[string]string{bridgeOption + "gateway_mode_ipv4": "routed"})
	key := func(port string) []nftables.SetElement {
		return []nftables.SetElement{{Key: portKey(network.PortKey{Protocol: network.TCP, Host: netip.MustParseAddrPort("10.5.0.2:" + port)})}}
	}
	c, err := d.p.connect()
	d.ok(err)
	b := &tableBuilder{c: c, family: nftables.TableFamilyIPv4, t: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: d.p.table}}
	d.ok(b.declareMaps())
	d.ok(c.SetDeleteElements(b.open, key("80")))
	d.ok(c.SetAddElements(b.open, key("81")))
	d.ok(c.Flush())
	d.expect(
		reach{"closed by somebody", d.outside, "10.5.0.2:80", "error"},
		reach{"opened by somebody", d.outside, "10.5.0.2:81", "10.99.0.2"},
	)
	d.p.stale.Store(true)
	d.ok(d.Keep(t.Context(), []string{"a", "b"}))
	d.expect(
		reach{"open again", d.outside, "10.5.0.2:80", "10.99.0.2"},
		reach{"closed again", d.outside, "10.5.0.2:81", "error"},
	)
}
