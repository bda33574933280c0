package network

import (
	"cmp"
	"crypto/sha256"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	hostNamePrefix = "veth"
	// maxEndpoints bounds a container's networks.
	maxEndpoints = 256
)

// newEndpoint takes what a container needs to be in a network. Callers hold mu.
// id is the container's.
func (n *Networks) newEndpoint(id string, w *netw, asked *dnet.EndpointSettings) (endpoint, error) {
	s := asked.Copy()
	if s == nil {
		s = &dnet.EndpointSettings{}
	}
	had := [2]netip.Addr{s.IPAddress, s.GlobalIPv6Address}
	forgetOperational(s)
	s.NetworkID, s.EndpointID = w.Network.ID, newID()
	if !w.named() {
		s.DNSNames = nil
	}
	e := endpoint{NetworkID: w.Network.ID, Settings: s}
	if w.Network.ConfigOnly {
		return e, api.Errorf(api.PermissionDenied, "network %s is a configuration network: containers can't be in it", w.Network.Name)
	}
	if predefined(w.Network.Name) && len(s.Aliases) > 0 {
		return e, api.Errorf(api.Invalid, "network %s: network-scoped alias is supported only for containers in user defined networks", w.Network.Name)
	}
	if w.plain() {
		return e, w.checkAddresses(s.IPAMConfig)
	}
	if err := w.checkAddresses(s.IPAMConfig); err != nil {
		return e, err
	}
	if _, _, err := parseEndpointOptions(s.DriverOpts); err != nil {
		return e, err
	}
	if len(s.MacAddress) != 0 && (len(s.MacAddress) != 6 || s.MacAddress[0]&1 != 0) {
		return e, api.Errorf(api.Invalid, "network %s: %s is not a MAC address of a single host", w.Network.Name, s.MacAddress)
	}
	if g := n.places.granted[grantKey{id, w.Network.ID}]; g != nil {
		e.Grant = g.ID
		take := w.takeAddresses // each node has its own
		if w.Overlay != nil {
			take = func(s *dnet.EndpointSettings, _ [2]netip.Addr) error { return w.granted(s, g) }
		}
		if err := take(s, had); err != nil {
			return e, err
		}
	} else if w.Overlay != nil {
		if err := w.takeGiven(s); err != nil {
			return e, err
		}
	} else if err := w.takeAddresses(s, had); err != nil {
		return e, err
	}
	if len(s.MacAddress) == 0 {
		s.MacAddress = macOf(s.IPAddress, s.GlobalIPv6Address)
	}
	if len(s.MacAddress) == 0 {
		s.MacAddress = macOfName(id + " " + w.Network.ID)
	}
	e.HostName = hostNamePrefix + s.EndpointID[:maxDeviceName-len(hostNamePrefix)]
	return e, nil
}

// CheckAddresses refuses addresses that a container can never have in a network, by
// name or id. Networks that are not known here are left to who makes them known.
func (n *Networks) CheckAddresses(net string, asked *dnet.EndpointIPAMConfig) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	w, err := n.lookup(net)
	if err != nil {
		return nil
	}
	return w.checkAddresses(asked)
}

func (w *netw) checkAddresses(asked *dnet.EndpointIPAMConfig) error {
	if asked == nil {
		return nil
	}
	for _, a := range []netip.Addr{asked.IPv4Address, asked.IPv6Address} {
		switch {
		case !a.IsValid():
		case predefined(w.Network.Name):
			return api.Errorf(api.Invalid, "network %s: user specified IP address is supported on user defined networks only", w.Network.Name)
		case !slices.ContainsFunc(w.Network.IPAM.Config, func(c dnet.IPAMConfig) bool { return c.Subnet.IsValid() && c.Subnet.Contains(a) }):
			var subnets []string
			for _, c := range w.Network.IPAM.Config {
				subnets = append(subnets, c.Subnet.String())
			}
			if len(subnets) == 1 {
				return api.Errorf(api.Invalid, "network %s: address %s is not in its subnet %s", w.Network.Name, a, subnets[0])
			}
			return api.Errorf(api.Invalid, "network %s: address %s is in none of its subnets [%s]", w.Network.Name, a, strings.Join(subnets, " "))
		}
	}
	return w.checkLinkLocal(asked.LinkLocalIPs)
}

// maxLinkLocal bounds the addresses of the link that a container may ask for in a network.
const maxLinkLocal = 16

// checkLinkLocal refuses addresses of the link that an interface in the network can't
// have. Nobody else has to have them: whoever asks for them sees to that.
func (w *netw) checkLinkLocal(l []netip.Addr) error {
	if len(l) > maxLinkLocal {
		return api.Errorf(api.Invalid, "network %s: at most %d link-local addresses are allowed", w.Network.Name, maxLinkLocal)
	}
	for i, a := range l {
		switch {
		case !a.IsLinkLocalUnicast() || a.Zone() != "":
			return api.Errorf(api.Invalid, "network %s: invalid link-local IP address %s: it must be in 169.254.0.0/16 or fe80::/64", w.Network.Name, a)
		case a.Is6() && !w.Network.EnableIPv6:
			return api.Errorf(api.Invalid, "network %s: link-local address %s, but IPv6 is not enabled", w.Network.Name, a)
		case slices.Contains(l[:i], a):
			return api.Errorf(api.Invalid, "network %s: link-local address %s is named twice", w.Network.Name, a)
		}
	}
	return nil
}

// linkLocal are the addresses of the link that were asked for.
func linkLocal(asked *dnet.EndpointIPAMConfig) (l []netip.Prefix) {
	if asked == nil {
		return nil
	}
	for _, a := range asked.LinkLocalIPs {
		bits := 16
		if a.Is6() {
			bits = 64
		}
		l = append(l, netip.PrefixFrom(a, bits))
	}
	return l
}

// forgetOperational clears what an earlier attachment filled in. A MAC address
// is kept if it was asked for, which one that was made from an address was not.
func forgetOperational(s *dnet.EndpointSettings) {
	if s.EndpointID != "" && slices.Equal(s.MacAddress, macOf(s.IPAddress, s.GlobalIPv6Address)) {
		s.MacAddress = nil
	}
	s.NetworkID, s.EndpointID, s.IPPrefixLen, s.GlobalIPv6PrefixLen = "", "", 0, 0
	s.IPAddress, s.Gateway, s.GlobalIPv6Address, s.IPv6Gateway = netip.Addr{}, netip.Addr{}, netip.Addr{}, netip.Addr{}
}

// takeAddresses fills in addresses and gateways: those asked for, or those that it had
// last if they are free, or the next.
func (w *netw) takeAddresses(s *dnet.EndpointSettings, had [2]netip.Addr) (err error) {
	var want4, want6 netip.Addr
	if s.IPAMConfig != nil {
		want4, want6 = s.IPAMConfig.IPv4Address, s.IPAMConfig.IPv6Address
	}
	if s.IPAddress, err = w.takeFrom(w.v4, want4, had[0]); err != nil {
		return err
	}
	if s.GlobalIPv6Address, err = w.takeFrom(w.v6, want6, had[1]); err != nil {
		w.releaseEndpoint(s)
		return err
	}
	for _, c := range w.Network.IPAM.Config {
		gw := c.Gateway
		if w.Network.Internal {
			gw = netip.Addr{}
		}
		switch {
		case c.Subnet.Contains(s.IPAddress):
			s.IPPrefixLen, s.Gateway = c.Subnet.Bits(), gw
		case c.Subnet.Contains(s.GlobalIPv6Address):
			s.GlobalIPv6PrefixLen, s.IPv6Gateway = c.Subnet.Bits(), gw
		}
	}
	return nil
}

// takeGiven fills in the addresses that the managers have given a task: in an
// overlay there are no others.
func (w *netw) takeGiven(s *dnet.EndpointSettings) error {
	if s.IPAMConfig == nil || !s.IPAMConfig.IPv4Address.IsValid() {
		return api.Errorf(api.Invalid, "network %s is the swarm's: only tasks of services can be in it", w.Network.Name)
	}
	for _, a := range []netip.Addr{s.IPAMConfig.IPv4Address, s.IPAMConfig.IPv6Address} {
		if !a.IsValid() {
			continue
		}
		i := slices.IndexFunc(w.Network.IPAM.Config, func(c dnet.IPAMConfig) bool { return c.Subnet.Contains(a) })
		if i < 0 {
			return api.Errorf(api.Invalid, "network %s: address %s is in none of its subnets", w.Network.Name, a)
		}
		if bits := w.Network.IPAM.Config[i].Subnet.Bits(); a.Is4() {
			s.IPAddress, s.IPPrefixLen = a, bits
		} else {
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = a, bits
		}
	}
	return nil
}

func (w *netw) takeFrom(l pools, want, had netip.Addr) (netip.Addr, error) {
	switch {
	case len(l) == 0 && want.IsValid():
		return netip.Addr{}, api.Errorf(api.Invalid, "network %s has no subnet for address %s", w.Network.Name, want)
	case len(l) == 0:
		return netip.Addr{}, nil
	case want.IsValid():
		return want, l.claim(want)
	case l.retake(had):
		return had, nil
	}
	return l.take()
}

// claimEndpoint takes the addresses that an endpoint already has.
func (w *netw) claimEndpoint(s *dnet.EndpointSettings) error {
	if s == nil {
		return api.Errorf(api.Internal, "network %s: an endpoint without settings", w.Network.Name)
	}
	if w.Overlay != nil {
		return nil
	}
	if s.IPAddress.IsValid() {
		if _, err := w.takeFrom(w.v4, s.IPAddress, netip.Addr{}); err != nil {
			return err
		}
	}
	if s.GlobalIPv6Address.IsValid() {
		if _, err := w.takeFrom(w.v6, s.GlobalIPv6Address, netip.Addr{}); err != nil {
			w.v4.release(s.IPAddress)
			return err
		}
	}
	return nil
}

// releaseEndpoint gives an endpoint's addresses back.
func (w *netw) releaseEndpoint(s *dnet.EndpointSettings) {
	w.v4.release(s.IPAddress)
	w.v6.release(s.GlobalIPv6Address)
}

// release gives the addresses of endpoints back. Callers hold mu.
func (n *Networks) release(endpoints []endpoint) {
	for _, e := range endpoints {
		if w := n.nets[e.NetworkID]; w != nil {
			w.releaseEndpoint(e.Settings)
		}
	}
}

// macOf derives a MAC address from an endpoint's address, so that the two
// change together and nobody has a stale neighbour: 02:42 and the four bytes of
// an IPv4 address, or the last four of an IPv6 one.
func macOf(v4, v6 netip.Addr) dnet.HardwareAddr {
	b := v4.AsSlice()
	if b == nil {
		if b = v6.AsSlice(); b == nil {
			return nil
		}
		b = b[12:]
	}
	return dnet.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// macOfName is the MAC address of a container without an address of ours: always the
// same, so that who gives it one there knows it again.
func macOfName(name string) dnet.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return dnet.HardwareAddr{0x02, 0x42, sum[0], sum[1], sum[2], sum[3]}
}

// nameInterfaces gives interfaces without a name one that is free.
func (n *Networks) nameInterfaces(endpoints []endpoint) error {
	used := map[string]bool{}
	for i := range endpoints {
		e := &endpoints[i]
		if e.HostName == "" {
			continue
		}
		name := e.Interface
		if asked, _, err := parseEndpointOptions(e.Settings.DriverOpts); name == "" && err == nil {
			name = asked
		}
		if name != "" && used[name] || name == loopbackDevice {
			return api.Errorf(api.Invalid, "interface name %s is taken in the container", name)
		}
		e.Interface = name
		used[name] = true
	}
	for i := range endpoints {
		e := &endpoints[i]
		for k := 0; e.HostName != "" && e.Interface == ""; k++ {
			if name := n.nets[e.NetworkID].ifPrefix + strconv.Itoa(k); !used[name] {
				e.Interface, used[name] = name, true
			}
		}
	}
	return nil
}

// sortEndpoints puts the one that gives the default route first: the highest
// priority, then the network's name.
func (n *Networks) sortEndpoints(l []endpoint) {
	automatic := func(e endpoint) int {
		if e.Automatic {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(l, func(a, b endpoint) int {
		return cmp.Or(cmp.Compare(automatic(a), automatic(b)), cmp.Compare(b.Settings.GwPriority, a.Settings.GwPriority),
			strings.Compare(n.nets[a.NetworkID].Network.Name, n.nets[b.NetworkID].Network.Name))
	})
}

// gatewayEndpoints returns the endpoints, sorted as they are, that have the
// default routes.
func gatewayEndpoints(l []endpoint) (v4, v6 *endpoint) {
	for i := range l {
		if v4 == nil && l[i].Settings.Gateway.IsValid() {
			v4 = &l[i]
		}
		if v6 == nil && l[i].Settings.IPv6Gateway.IsValid() {
			v6 = &l[i]
		}
	}
	return v4, v6
}

// sandboxOf returns the sandbox of an attachment; nil if it shares the host's.
func (n *Networks) sandboxOf(a *attachment) *Sandbox {
	s := &Sandbox{ID: a.ID}
	for _, e := range a.Endpoints {
		w := n.nets[e.NetworkID]
		if w.Network.Driver == "host" {
			return nil
		}
		if w.plain() {
			continue
		}
		f := Interface{
			Name: e.Interface, HostName: e.HostName, Bridge: w.Device, MTU: w.mtuOr(n.mtu),
			MAC: net.HardwareAddr(e.Settings.MacAddress).String(),
		}
		if w.Overlay != nil {
			f.Overlay, f.MTU = w.Network.ID, n.overlayMTU(w)
		}
		if m := w.Macvlan; m != nil {
			f.Parent, f.Mode, f.MTU = m.Parent, m.Mode, w.mtu // 0: its parent's
		}
		_, f.Sysctls, _ = parseEndpointOptions(e.Settings.DriverOpts)
		if e.Settings.IPAddress.IsValid() {
			f.Addresses = append(f.Addresses, netip.PrefixFrom(e.Settings.IPAddress, e.Settings.IPPrefixLen))
		}
		if e.Settings.GlobalIPv6Address.IsValid() {
			f.Addresses = append(f.Addresses, netip.PrefixFrom(e.Settings.GlobalIPv6Address, e.Settings.GlobalIPv6PrefixLen))
		}
		if w.Overlay != nil {
			f.Routes = w.beyond(f.Addresses)
		}
		f.Addresses = append(f.Addresses, linkLocal(e.Settings.IPAMConfig)...)
		s.Interfaces = append(s.Interfaces, f)
	}
	s.Resolver = n.resolverOf(a)
	e4, e6 := gatewayEndpoints(a.Endpoints)
	if e4 != nil {
		s.Gateway4 = e4.Settings.Gateway
	}
	if e6 != nil {
		s.Gateway6 = e6.Settings.IPv6Gateway
	}
	return s
}
