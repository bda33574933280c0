package network

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Host ports that are given out when none is asked for: the range that IANA
// leaves for it (RFC 6335), less its first, as Docker does.
const (
	firstDynamicPort = 49153
	lastDynamicPort  = 65535
)

// maxPublished bounds a container's published ports.
const maxPublished = 10_000

// binding is a container port that is to be published once.
type binding struct {
	port   dnet.Port
	hosts  []netip.Addr // published on each, with one port number
	open   []netip.Addr // of the container, reached there by routing
	lo, hi uint16       // acceptable host ports
	any    bool         // lo to hi are the dynamic range
}

// targets are the addresses that a container's published ports lead to.
type targets struct {
	// v4 and v6 are led to from ports of the host; zero: none are.
	v4, v6 netip.Addr
	// hostIP is where ports go that name no address; zero: everywhere.
	hostIP netip.Addr
	// routed4 and routed6: the container's way out is routed, and so is the way in.
	routed4, routed6 bool
	// open are its addresses in routed networks.
	open []openAddr
}

// openAddr is an address in a routed network.
type openAddr struct {
	netip.Addr
	hostIP netip.Addr // as in targets, for its network: it says of which family ports are
}

// targetsOf returns where a container's ports lead: to the endpoints that have
// its default routes, and to all that are routed.
func (n *Networks) targetsOf(endpoints []endpoint) targets {
	var t targets
	e4, e6 := gatewayEndpoints(endpoints)
	// The host does not reach what is on one of its devices by itself.
	if e4 != nil && n.nets[e4.NetworkID].Macvlan != nil {
		e4 = nil
	}
	if e6 != nil && n.nets[e6.NetworkID].Macvlan != nil {
		e6 = nil
	}
	if e4 != nil {
		w := n.nets[e4.NetworkID]
		t.hostIP = w.hostIP
		if t.routed4 = w.mode4 == GatewayRouted; !t.routed4 {
			t.v4 = e4.Settings.IPAddress
		}
	}
	if e6 != nil {
		if t.routed6 = n.nets[e6.NetworkID].mode6 == GatewayRouted; !t.routed6 {
			t.v6 = e6.Settings.GlobalIPv6Address
		}
	}
	for _, e := range endpoints {
		w := n.nets[e.NetworkID]
		if w.Device == "" || w.Network.Internal {
			continue
		}
		if a := e.Settings.IPAddress; a.IsValid() && w.mode4 == GatewayRouted {
			t.open = append(t.open, openAddr{a, w.hostIP})
		}
		if a := e.Settings.GlobalIPv6Address; a.IsValid() && w.mode6 == GatewayRouted {
			t.open = append(t.open, openAddr{a, w.hostIP})
		}
	}
	return t
}

// target returns where a port published on a host address leads; zero if it
// can't be published there.
func (t targets) target(host netip.Addr, proxy bool) netip.Addr {
	same, other, routed := t.v4, t.v6, t.routed4
	if host.Is6() {
		same, other, routed = t.v6, t.v4, t.routed6
	}
	if same.IsValid() || !proxy || routed {
		return same
	}
	return other
}

// hostsOf are the host's addresses that a port is to be published on. One that users
// name is that one; a network's default 0.0.0.0 means all, of both families.
func hostsOf(asked, otherwise netip.Addr) []netip.Addr {
	switch all := netip.IPv4Unspecified(); {
	case asked.IsValid():
		return []netip.Addr{asked}
	case otherwise.IsValid() && otherwise != all:
		return []netip.Addr{otherwise}
	default:
		return []netip.Addr{all, netip.IPv6Unspecified()}
	}
}

// publish chooses host ports for what was asked; avoid has those that turned
// out to be another process's, and had what the container has, which it keeps as far
// as it can. Callers hold mu. Nothing is taken yet.
func (n *Networks) publish(id string, asked dnet.PortMap, t targets, avoid map[PortKey]bool, had []Port) ([]Port, error) {
	var ports []Port
	if !t.v4.IsValid() && !t.v6.IsValid() && len(t.open) == 0 {
		return nil, nil // nothing leads out of its networks, so nothing in
	}
	mine := map[PortKey]string{}
	for _, p := range slices.SortedFunc(maps.Keys(asked), comparePorts) {
		for _, pb := range asked[p] {
			b, err := n.parseBinding(p, pb, t)
			if err != nil {
				return nil, err
			}
			if len(b.hosts) > 0 {
				host, err := n.choose(id, b, mine, avoid, had)
				if err != nil {
					return nil, err
				}
				for _, a := range b.hosts {
					k := PortKey{Protocol(p.Proto()), netip.AddrPortFrom(a, host)}
					mine[k] = id
					ports = append(ports, Port{PortKey: k, Sandbox: id, Target: netip.AddrPortFrom(t.target(a, !n.o.NoUserProxy), p.Num())})
				}
			} else if pb.HostPort != "" {
				n.log.Info("network: a published port has no port of the host, since all that it leads to is routed", "container", id, "port", p.String(), "asked", pb.HostPort)
			}
			for _, a := range b.open {
				ports = open(ports, Port{PortKey: PortKey{Protocol(p.Proto()), netip.AddrPortFrom(a, p.Num())}, Sandbox: id, Open: true})
			}
			if len(ports) > maxPublished {
				return nil, api.Errorf(api.Invalid, "more than %d published ports", maxPublished)
			}
		}
	}
	return ports, nil
}

// open adds an open port, once.
func open(ports []Port, p Port) []Port {
	if p.Target = p.Host; slices.Contains(ports, p) {
		return ports
	}
	return append(ports, p)
}

func comparePorts(a, b dnet.Port) int {
	return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
}

func (n *Networks) parseBinding(p dnet.Port, pb dnet.PortBinding, t targets) (binding, error) {
	b := binding{port: p, lo: firstDynamicPort, hi: lastDynamicPort, any: true}
	if !slices.Contains([]dnet.IPProtocol{dnet.TCP, dnet.UDP, dnet.SCTP}, p.Proto()) || p.Num() == 0 {
		return b, api.Errorf(api.Invalid, "port %s: must be 1 to 65535 and tcp, udp or sctp", p)
	}
	if s := pb.HostPort; s != "" && s != "0" {
		lo, hi, isRange := strings.Cut(s, "-")
		x, err := strconv.ParseUint(lo, 10, 16)
		y := x
		if isRange && err == nil {
			y, err = strconv.ParseUint(hi, 10, 16)
		}
		if err != nil || x == 0 || y < x {
			return b, api.Errorf(api.Invalid, "port %s: host port %q must be a number from 1 to 65535 or a range of them", p, s)
		}
		b.lo, b.hi, b.any = uint16(x), uint16(y), false
	}
	host := pb.HostIP.Unmap().WithZone("")
	b.hosts = slices.DeleteFunc(hostsOf(host, t.hostIP), func(a netip.Addr) bool {
		return a.Is6() && !n.ipv6 || !t.target(a, !n.o.NoUserProxy).IsValid()
	})
	for _, o := range t.open {
		if slices.ContainsFunc(hostsOf(host, o.hostIP), func(a netip.Addr) bool { return a.Is4() == o.Is4() }) {
			b.open = append(b.open, o.Addr)
		}
	}
	if len(b.hosts) == 0 && len(b.open) == 0 {
		if !host.IsValid() {
			host = t.hostIP
		}
		return b, api.Errorf(api.Invalid, "port %s can't be published on %s: the container has no address of that family, and relaying to the other is switched off or the host has no IPv6", p, host)
	}
	return b, nil
}

// choose returns the host port that the container had for the binding, or the first
// that nobody has.
func (n *Networks) choose(id string, b binding, mine map[PortKey]string, avoid map[PortKey]bool, had []Port) (uint16, error) {
	for i := range had {
		if port := had[i].Host.Port(); had[i].serves(b) && port >= b.lo && port <= b.hi && n.taken(id, b, port, mine, avoid) == nil {
			return port, nil
		}
	}
	size := int(b.hi-b.lo) + 1
	start := int(b.lo)
	if b.any {
		start = int(n.next)
	}
	var blocked error
	for i := range size {
		port := uint16(int(b.lo) + (start-int(b.lo)+i)%size)
		err := n.taken(id, b, port, mine, avoid)
		if err == nil {
			if b.any {
				n.next = port + 1
				if port == lastDynamicPort {
					n.next = firstDynamicPort
				}
			}
			return port, nil
		}
		if blocked == nil {
			blocked = err
		}
	}
	if size > 1 {
		return 0, api.Errorf(api.Conflict, "no host port from %d to %d is free for %s: %w", b.lo, b.hi, b.port, blocked)
	}
	return 0, blocked
}

// serves reports whether a port is the host's for the binding's port of the container.
func (p *Port) serves(b binding) bool {
	return !p.Open && p.Protocol == Protocol(b.port.Proto()) && p.Target.Port() == b.port.Num()
}

// taken says why a host port can't be had; nil if it can.
func (n *Networks) taken(id string, b binding, port uint16, mine map[PortKey]string, avoid map[PortKey]bool) error {
	for _, a := range b.hosts {
		k := PortKey{Protocol(b.port.Proto()), netip.AddrPortFrom(a, port)}
		if avoid[k] {
			return errPortTaken(k, n.outsider(k))
		}
		if who := holder(n.ports, k); who != "" && who != id {
			return errPortTaken(k, "container "+who)
		}
		if who := holder(mine, k); who != "" {
			return errPortTaken(k, "this container, twice")
		}
	}
	return nil
}

func errPortTaken(k PortKey, by string) error {
	return api.Errorf(api.Conflict, "Bind for %s failed: port is already allocated (%s, by %s)", k.Host, k.Protocol, by)
}

// outsider says who has a host port that no container of this node publishes. Callers
// hold mu.
func (n *Networks) outsider(k PortKey) string {
	if heard := n.told[n.mesh.network]; heard != nil {
		for _, s := range heard.services {
			for i := range s.Ports {
				if p := &s.Ports[i]; Protocol(p.Protocol) == k.Protocol && p.Published == k.Host.Port() {
					return "service " + s.Name + ", on every node"
				}
			}
		}
	}
	return "a process of this host"
}

// holder returns who has a port that can't be had beside k.
func holder(ports map[PortKey]string, k PortKey) string {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	unspecified := any4
	if k.Host.Addr().Is6() {
		unspecified = any6
	}
	for _, a := range []netip.Addr{k.Host.Addr(), unspecified} {
		if who, ok := ports[PortKey{k.Protocol, netip.AddrPortFrom(a, k.Host.Port())}]; ok {
			return who
		}
	}
	if k.Host.Addr().IsUnspecified() {
		for o, who := range ports {
			if o.overlaps(k) {
				return who
			}
		}
	}
	return ""
}
