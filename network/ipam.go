package network

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// draftDevice names a new network's bridge. Callers hold mu.
func (n *Networks) draftDevice(r *record, host *Host) error {
	s, err := parseSettings(r.Network.Options)
	if err != nil {
		return err
	}
	if err := s.checkInternal(r.Network.Name, r.Network.Internal); err != nil {
		return err
	}
	if r.Device = s.device; r.Device == "" {
		r.Device = "br-" + r.Network.ID[:12]
		return nil
	}
	for o := range n.addressed() {
		if o.Device == r.Device {
			return api.Errorf(api.PermissionDenied, "network %s: device %s is already that of network %s: networks have same bridge name", r.Network.Name, r.Device, o.Network.Name)
		}
	}
	d, there := host.Devices[r.Device]
	switch {
	case !there || d.Own:
	case !d.Bridge:
		return api.Errorf(api.Invalid, "network %s: device %s exists and is not a bridge", r.Network.Name, r.Device)
	case d.Owner != "":
		return api.Errorf(api.Conflict, "network %s: bridge %s belongs to another node on this host (%s)", r.Network.Name, r.Device, d.Owner)
	default:
		r.External = true
	}
	return nil
}

// draftAddresses decides on a new network's subnets and gateways. Callers hold
// mu.
func (n *Networks) draftAddresses(r *record, q *dnet.CreateRequest, host *Host) error {
	v4, v6 := families(q)
	if v6 && !host.IPv6 {
		return api.Errorf(api.Invalid, "network %s: IPv6 is switched off on this host", q.Name)
	}
	if mtu := n.mtuAsked(r); v6 && mtu != 0 && mtu < minMTU6 {
		return api.Errorf(api.Invalid, "network %s: with IPv6 its MTU must be %d bytes at least, and is %d (--opt %s)", q.Name, minMTU6, mtu, optMTU)
	}
	r.Network.EnableIPv4, r.Network.EnableIPv6 = v4, v6
	ipam := ipamOf(q)
	if ipam.Driver == ipamNull {
		if r.Macvlan == nil { // of a configuration network's, which does not know the driver
			return checkIPAM(q)
		}
		r.Network.IPAM = ipam
		return nil
	}
	var asked []dnet.IPAMConfig
	if q.IPAM != nil {
		asked = q.IPAM.Config
	}
	for _, c := range asked {
		if err := checkSubnet(q.Name, c, v4, v6); err != nil {
			return err
		}
		if err := n.checkFree(r, c.Subnet, host); err != nil {
			return err
		}
		if err := checkMore(r, ipam.Config, c.Subnet); err != nil {
			return err
		}
		ipam.Config = append(ipam.Config, c)
	}
	for _, family := range []struct {
		wanted, ipv6 bool
		pools        []AddressPool
	}{{v4, false, n.o.Pools}, {v6, true, n.pools6()}} {
		has := slices.ContainsFunc(ipam.Config, func(c dnet.IPAMConfig) bool { return c.Subnet.Addr().Is6() == family.ipv6 })
		if !family.wanted || has {
			continue
		}
		s, err := freeSubnet(family.pools, family.ipv6, n.busy(host))
		if err != nil {
			return api.Errorf(api.ClassOf(err), "network %s: %w", q.Name, err)
		}
		ipam.Config = append(ipam.Config, dnet.IPAMConfig{Subnet: s})
	}
	for i := range ipam.Config {
		if err := defaultGateway(q.Name, &ipam.Config[i], r.gatewayless(ipam.Config[i].Subnet.Addr().Is6())); err != nil {
			return err
		}
	}
	r.Network.IPAM = ipam
	return nil
}

// maxSubnets bounds a network's subnets.
const maxSubnets = 64

// checkMore refuses a subnet that a network can't have beside those that are asked for
// before it.
func checkMore(r *record, before []dnet.IPAMConfig, s netip.Prefix) error {
	if len(before) >= maxSubnets {
		return tooManySubnets(r.Network.Name)
	}
	for _, o := range before {
		switch {
		case o.Subnet.Overlaps(s):
			return api.Errorf(api.PermissionDenied, "network %s: invalid pool request: Pool overlaps with other one on this address space: subnets %s and %s", r.Network.Name, o.Subnet, s)
		case r.Macvlan == nil && o.Subnet.Addr().Is4() == s.Addr().Is4():
			return api.Errorf(api.PermissionDenied, "network %s: bridge driver doesn't support multiple subnets: it has one of each family, and %s is one too many", r.Network.Name, s)
		}
	}
	return nil
}

func tooManySubnets(name string) error {
	return api.Errorf(api.Invalid, "network %s: at most %d subnets are allowed", name, maxSubnets)
}

// ipamOf is who gives addresses in a network that is asked for, without subnets.
func ipamOf(q *dnet.CreateRequest) dnet.IPAM {
	o := dnet.IPAM{Driver: ipamDefault, Options: map[string]string{}, Config: []dnet.IPAMConfig{}}
	if q.IPAM != nil {
		o.Driver, o.Options = cmp.Or(q.IPAM.Driver, ipamDefault), orEmpty(q.IPAM.Options)
	}
	return o
}

// mtuAsked is that of a new network, in bytes; 0: its device's.
func (n *Networks) mtuAsked(r *record) int {
	mtu, _ := strconv.Atoi(r.Network.Options[optMTU]) // none, or one that was checked
	if mtu == 0 && r.Macvlan == nil {
		return n.mtu
	}
	return mtu
}

// pools6 returns the blocks that IPv6 subnets are cut from. Callers hold mu.
func (n *Networks) pools6() []AddressPool {
	if slices.ContainsFunc(n.o.Pools, func(p AddressPool) bool { return p.Base.Addr().Is6() }) {
		return n.o.Pools
	}
	var seed [5]byte
	if w, err := n.lookup(dnet.NetworkHost); err == nil { // its id stays as it is as long as the node does
		sum := sha256.Sum256([]byte(w.Network.ID))
		copy(seed[:], sum[:])
	}
	return []AddressPool{ulaPool(seed)}
}

// checkSubnet checks a subnet that a user gave, by itself.
func checkSubnet(name string, c dnet.IPAMConfig, v4, v6 bool) error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.Invalid, "network "+strings.ReplaceAll(name, "%", "%%")+": "+format, args...)
	}
	s := c.Subnet
	switch {
	case !s.IsValid():
		return bad("an IPAM configuration has no subnet; a gateway, range or auxiliary address needs one")
	case s != s.Masked():
		return bad("invalid subnet %s: it should be %s", s, s.Masked())
	case s.Addr().Is4In6() || s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsUnspecified():
		return bad("invalid subnet %s: containers can't have such addresses", s)
	case s.Addr().Is4() && !v4:
		return bad("subnet %s, but IPv4 is not enabled", s)
	case s.Addr().Is6() && !v6:
		return bad("subnet %s, but IPv6 is not enabled (--ipv6)", s)
	case s.Addr().BitLen()-s.Bits() < 1:
		return bad("subnet %s has no room for a gateway and a container", s)
	case c.Gateway.IsValid() && !s.Contains(c.Gateway):
		return bad("invalid gateway %s: parent subnet %s doesn't contain this address", c.Gateway, s)
	case c.IPRange.IsValid() && (c.IPRange != c.IPRange.Masked() || !within(c.IPRange, s)):
		return bad("invalid ip-range %s: it must be a block inside subnet %s", c.IPRange, s)
	}
	for _, k := range slices.Sorted(maps.Keys(c.AuxAddress)) {
		if !s.Contains(c.AuxAddress[k]) {
			return bad("invalid auxiliary address %s=%s: parent subnet %s doesn't contain this address", k, c.AuxAddress[k], s)
		}
	}
	return nil
}

// checkFree refuses a subnet that a user gave for a new network if another network
// of this node has part of it, or if a bridge with it would cut the host off from what
// it reaches by a device. A wider route is no hindrance: the user may mean it. Callers
// hold mu.
func (n *Networks) checkFree(r *record, s netip.Prefix, host *Host) error {
	for o := range n.addressed() {
		for _, c := range o.Network.IPAM.Config {
			if c.Subnet.Overlaps(s) {
				return api.Errorf(api.PermissionDenied, "network %s: invalid pool request: Pool overlaps with other one on this address space: %s and %s of network %s", r.Network.Name, s, c.Subnet, o.Network.Name)
			}
		}
	}
	if r.Device == "" || r.External || s.Addr().IsLinkLocalUnicast() {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(host.Devices)) {
		if d := host.Devices[name]; !d.Own {
			if i := slices.IndexFunc(d.Addresses, s.Overlaps); i >= 0 {
				return api.Errorf(api.PermissionDenied, "network %s: subnet %s overlaps %s of this host's device %s, so the host could not reach what is there; name another subnet (--subnet)", r.Network.Name, s, d.Addresses[i].Masked(), name)
			}
		}
	}
	return nil
}

// gatewayless reports whether a new network needs no gateway in an address family: no
// container has a default route to one, and the bridge does not have its address.
func (r *record) gatewayless(v6 bool) bool {
	if r.Device == "" || !r.Network.Internal {
		return false
	}
	s, err := parseSettings(r.Network.Options)
	return err == nil && s.bare(v6)
}

// defaultGateway gives a subnet without a gateway the first address that is
// not reserved, unless there is to be none, and checks that all reserved addresses can
// be.
func defaultGateway(name string, c *dnet.IPAMConfig, none bool) error {
	p := newPool(name, c.Subnet, netip.Prefix{})
	for _, k := range slices.Sorted(maps.Keys(c.AuxAddress)) {
		if err := p.claim(c.AuxAddress[k]); err != nil {
			return err
		}
	}
	if c.Gateway.IsValid() {
		return p.claim(c.Gateway)
	}
	if none {
		return nil
	}
	var err error
	c.Gateway, err = p.take()
	return err
}
