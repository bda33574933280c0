package allocator

import (
	"crypto/sha256"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// VXLAN network identifiers that are given out; those below are left to users.
const (
	FirstVNI = 4096
	LastVNI  = api.LastVNI
)

// DefaultSubnetSize is the mask length of subnets from a swarm's pools, when the
// user names none: Docker's.
const DefaultSubnetSize = 24

// DefaultPool is what subnets are cut from when the user names no pool: Docker's.
func DefaultPool() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10}), 8) }

// Pools are what subnets are cut from that a user does not name.
type Pools struct {
	Bases []netip.Prefix
	Size  int // mask length of each subnet
	// Routes of the manager's host: containers of a network that overlaps one could
	// not reach what is there, or the host not the containers.
	Routes []netip.Prefix
}

// PoolsOf returns a swarm's pools: those of IPv4 that it was made with, and for
// IPv6 a block of its own (RFC 4193), made from its id.
func PoolsOf(c *api.Cluster) Pools {
	p := Pools{Bases: slices.Clone(c.DefaultAddrPool), Size: int(c.SubnetSize)}
	if len(p.Bases) == 0 {
		p.Bases = []netip.Prefix{DefaultPool()}
	}
	if p.Size == 0 {
		p.Size = DefaultSubnetSize
	}
	p.Bases = append(p.Bases, uniqueLocal(c.ID))
	return p
}

func uniqueLocal(id string) netip.Prefix {
	sum := sha256.Sum256([]byte(id))
	b := [16]byte{0: 0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// used is what the networks of a swarm have.
type used struct {
	subnets []subnetOf        // of networks, then routes
	vnis    map[uint32]string // network by name
}

type subnetOf struct {
	prefix  netip.Prefix
	network string // empty: a route of the host
}

func usedBy(others iter.Seq[*api.Network], except string) *used {
	u := &used{vnis: map[uint32]string{}}
	for o := range others {
		if o.ID == except || o.Predefined {
			continue
		}
		for v := range o.VNIs() {
			u.vnis[v] = o.Spec.Name
		}
		for _, p := range o.Subnets() {
			u.subnets = append(u.subnets, subnetOf{p, o.Spec.Name})
		}
	}
	return u
}

// Network returns a new overlay network with what its spec leaves open: subnets,
// gateways and VNIs, one for each IPv4 subnet, of which the first free ones from seed
// on are taken. A seed that grows keeps the identifier of a network that was just
// removed, which nodes may still be about to forget, from being used again at once.
// Errors: Conflict, a subnet or VNI is another network's; ResourceExhausted; Invalid.
func Network(n *api.Network, others iter.Seq[*api.Network], pools Pools, seed uint64) (*api.Network, error) {
	u := usedBy(others, n.ID)
	for _, r := range pools.Routes {
		u.subnets = append(u.subnets, subnetOf{prefix: r})
	}
	c := *n
	c.DriverState = swarm.Driver{Name: "overlay", Options: map[string]string{}}
	var asked []swarm.IPAMConfig
	if d := n.Spec.DriverConfiguration; d != nil {
		maps.Copy(c.DriverState.Options, d.Options)
	}
	if o := n.Spec.IPAMOptions; o != nil {
		asked = o.Configs
	}
	c.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}}
	for _, f := range []struct{ wanted, v6 bool }{{true, false}, {n.Spec.IPv6Enabled, true}} {
		if !f.wanted {
			continue
		}
		ofFamily := slices.DeleteFunc(slices.Clone(asked), func(a swarm.IPAMConfig) bool { return !a.Subnet.IsValid() || a.Subnet.Addr().Is6() != f.v6 })
		if len(ofFamily) == 0 {
			ofFamily = []swarm.IPAMConfig{{}}
		}
		for _, cfg := range ofFamily {
			cfg, err := u.subnet(cfg, f.v6, pools, n.Reserved)
			if err != nil {
				return nil, err
			}
			c.IPAMOptions.Configs = append(c.IPAMOptions.Configs, cfg)
		}
	}
	var err error
	c.DriverState.Options[api.OptionVNIs], err = u.vni(c.DriverState.Options[api.OptionVNIs], subnets4(c.IPAMOptions), seed)
	return &c, err
}

// subnets4 returns how many IPv4 subnets there are.
func subnets4(o *swarm.IPAMOptions) (n int) {
	for _, c := range o.Configs {
		if c.Subnet.Addr().Is4() {
			n++
		}
	}
	return n
}

// vni returns as many identifiers as are wanted: those asked for, then the first free
// ones.
func (u *used) vni(asked string, count int, seed uint64) (string, error) {
	var got []string
	give := func(v uint32) {
		u.vnis[v] = "this"
		got = append(got, strconv.FormatUint(uint64(v), 10))
	}
	if asked != "" {
		all, err := ParseVNIs(asked, count)
		if err != nil {
			return "", err
		}
		for _, v := range all {
			if other, taken := u.vnis[v]; taken {
				return "", api.Errorf(api.Conflict, "option %s: VXLAN id %d is already that of network %s", api.OptionVNIs, v, other)
			}
			give(v)
		}
	}
	const span = LastVNI - FirstVNI + 1
	for i := uint64(0); i < span && len(got) < count; i++ {
		v := FirstVNI + uint32((seed+i)%span)
		if _, taken := u.vnis[v]; !taken {
			give(v)
		}
	}
	if len(got) < count {
		return "", api.Errorf(api.ResourceExhausted, "all VXLAN ids from %d to %d are in use", FirstVNI, LastVNI)
	}
	return strings.Join(got, ","), nil
}

// ParseVNIs reads what a user says of the identifiers of a network with so many IPv4
// subnets: a number for each, or for the first ones, with commas between them.
func ParseVNIs(s string, subnets int) ([]uint32, error) {
	var l []uint32
	for n := range strings.SplitSeq(s, ",") {
		v, err := strconv.ParseUint(strings.TrimSpace(n), 10, 32)
		if err != nil || v == 0 || v > LastVNI || slices.Contains(l, uint32(v)) {
			return nil, api.Errorf(api.Invalid, "option %s=%q: want different numbers from 1 to %d, with commas between them", api.OptionVNIs, s, LastVNI)
		}
		l = append(l, uint32(v))
	}
	if len(l) > subnets {
		return nil, api.Errorf(api.Invalid, "option %s=%q: want one number for each IPv4 subnet at most, and there are %d", api.OptionVNIs, s, subnets)
	}
	return l, nil
}

// subnet fills in a subnet and its gateway.
func (u *used) subnet(c swarm.IPAMConfig, v6 bool, pools Pools, reserved map[string]netip.Addr) (swarm.IPAMConfig, error) {
	if c.Subnet.IsValid() {
		for _, s := range u.subnets {
			switch {
			case !s.prefix.Overlaps(c.Subnet):
			case s.network == "":
				return c, api.Errorf(api.Conflict, "subnet %s overlaps the route to %s of this manager's host: containers could not reach what is there; name another subnet (--subnet)", c.Subnet, s.prefix)
			default:
				return c, api.Errorf(api.Conflict, "invalid pool request: Pool overlaps with other one on this address space: subnet %s and %s of network %s", c.Subnet, s.prefix, s.network)
			}
		}
	} else {
		var err error
		if c.Subnet, err = u.free(pools, v6); err != nil {
			return c, err
		}
	}
	u.subnets = append(u.subnets, subnetOf{c.Subnet, "this"})
	if c.Gateway.IsValid() {
		return c, nil
	}
	p := newPool(c.Subnet, netip.Prefix{})
	for _, a := range reserved {
		p.claim(a)
	}
	gw, ok := p.take()
	if !ok {
		return c, api.Errorf(api.Invalid, "subnet %s has no room for a gateway beside its auxiliary addresses", c.Subnet)
	}
	c.Gateway = gw.Addr()
	return c, nil
}

// size6 is the mask length of IPv6 subnets from a pool.
const size6 = 64

// maxRoutesNamed bounds how many routes a refusal names.
const maxRoutesNamed = 5

// free returns the first subnet of the pools that overlaps no other.
func (u *used) free(pools Pools, v6 bool) (netip.Prefix, error) {
	size := pools.Size
	if v6 {
		size = size6
	}
	var names, routes []string
	count := 0
	for _, base := range pools.Bases {
		if base.Addr().Is6() != v6 {
			continue
		}
		names = append(names, base.String())
		for s := netip.PrefixFrom(base.Masked().Addr(), max(size, base.Bits())); s.IsValid() && base.Contains(s.Addr()); {
			i := slices.IndexFunc(u.subnets, func(o subnetOf) bool { return o.prefix.Overlaps(s) })
			if i < 0 {
				return s, nil
			}
			if u.subnets[i].network != "" {
				count++
			} else if r := u.subnets[i].prefix.String(); !slices.Contains(routes, r) {
				routes = append(routes, r)
			}
			// Go on behind the larger of the two.
			if o := u.subnets[i].prefix; o.Bits() < s.Bits() {
				s = after(o, s.Bits())
			} else {
				s = after(s, s.Bits())
			}
		}
	}
	beside := ""
	if len(routes) > 0 {
		beside = " and by routes of this manager's host (" + strings.Join(routes[:min(len(routes), maxRoutesNamed)], ", ") + ")"
	}
	return netip.Prefix{}, api.Errorf(api.ResourceExhausted,
		"could not find an available, non-overlapping subnet: address pool %s is used up by %d subnets (of /%d each)%s",
		strings.Join(names, ", "), count, size, beside)
}

// after returns the prefix of the given length that begins behind p; the zero
// one if there is nothing.
func after(p netip.Prefix, bits int) netip.Prefix {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits() - 1; i >= 0; i-- { // add one to the network part
		b[i/8] ^= 1 << (7 - i%8)
		if b[i/8]&(1<<(7-i%8)) != 0 {
			a, _ := netip.AddrFromSlice(b)
			return netip.PrefixFrom(a, bits)
		}
	}
	return netip.Prefix{}
}
