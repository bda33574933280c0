package network

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// bridgePrefix names the default bridge's device, with a number.
const bridgePrefix = "legion"

// maxBridges bounds the search for a device name: nodes on one host.
const maxBridges = 1000

// predefine makes sure of the networks that are there without being created.
func (n *Networks) predefine(host *Host) error {
	for _, name := range []string{dnet.NetworkHost, dnet.NetworkNone} {
		if _, err := n.lookup(name); err == nil {
			continue
		}
		driver := "host"
		if name == dnet.NetworkNone {
			driver = "null"
		}
		if err := n.store(&record{Network: dnet.Network{
			Name: name, ID: newID(), Created: n.o.Now().UTC(), Scope: "local", Driver: driver, EnableIPv4: true,
			IPAM:    dnet.IPAM{Driver: ipamDefault, Config: []dnet.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		}}); err != nil {
			return err
		}
	}
	old, _ := n.lookup(dnet.NetworkBridge)
	if n.o.NoBridge {
		if old != nil {
			delete(n.nets, old.Network.ID)
			return forget(n.o.Dir, old.Network.ID)
		}
		return nil
	}
	r, err := n.defaultBridge(host, old)
	if err != nil {
		return fmt.Errorf("network bridge: %w", err)
	}
	return n.store(r)
}

// store writes a network and makes it known. Called by New.
func (n *Networks) store(r *record) error {
	if err := saveDurably(n.o.Dir, r.Network.ID, r); err != nil {
		return fmt.Errorf("network %s: write it to %s: %w", r.Network.Name, n.o.Dir, err)
	}
	return n.add(r)
}

// defaultBridge decides on the network "bridge". What it was before is kept as
// far as the options and the host allow.
func (n *Networks) defaultBridge(host *Host, old *netw) (*record, error) {
	r := &record{Network: dnet.Network{
		Name: dnet.NetworkBridge, ID: newID(), Created: n.o.Now().UTC(), Scope: "local", Driver: "bridge", EnableIPv4: true,
		EnableIPv6: n.o.BIP6.IsValid(), Labels: map[string]string{},
	}}
	var before record
	if old != nil {
		before = *old.record
		r.Network.ID, r.Network.Created = before.Network.ID, before.Network.Created
		delete(n.nets, before.Network.ID)
	}
	var err error
	if r.Device, r.External, err = n.defaultDevice(host, before.Device); err != nil {
		return nil, err
	}
	v4, err := n.defaultSubnet(host, r, &before)
	if err != nil {
		return nil, err
	}
	r.Network.IPAM = dnet.IPAM{Driver: ipamDefault, Config: []dnet.IPAMConfig{v4}}
	if n.o.BIP6.IsValid() {
		r.Network.IPAM.Config = append(r.Network.IPAM.Config, subnetConfig(n.o.BIP6))
	}
	r.Network.Options = map[string]string{
		optDefault: "true", optICC: strconv.FormatBool(!n.o.NoICC), optMasquerade: strconv.FormatBool(!n.o.NoMasquerade),
		optBridgeName: r.Device, optMTU: strconv.Itoa(n.mtu), optHostIP: netip.IPv4Unspecified().String(), // which is IPv6, too
	}
	if n.o.HostIP.IsValid() {
		r.Network.Options[optHostIP] = n.o.HostIP.String()
	}
	return r, nil
}

// defaultDevice returns the default bridge's device name, and whether it is
// somebody else's to be used as it is.
func (n *Networks) defaultDevice(host *Host, before string) (name string, external bool, err error) {
	if name = n.o.Bridge; name != "" {
		d, there := host.Devices[name]
		switch {
		case !there || d.Own:
			return name, false, nil
		case !d.Bridge:
			return "", false, api.Errorf(api.Invalid, "device %s exists and is not a bridge; name another with --bridge", name)
		case d.Owner != "":
			return "", false, api.Errorf(api.Conflict, "bridge %s belongs to another node on this host (%s); name another with --bridge", name, d.Owner)
		}
		return name, true, nil
	}
	if d, there := host.Devices[before]; before != "" && (!there || d.Own) {
		return before, false, nil
	}
	for i := range maxBridges {
		name = bridgePrefix + strconv.Itoa(i)
		if d, there := host.Devices[name]; !there || d.Own {
			return name, false, nil
		}
	}
	return "", false, api.Errorf(api.ResourceExhausted, "devices %s0 to %s%d are all taken; name one with --bridge", bridgePrefix, bridgePrefix, maxBridges-1)
}

// defaultSubnet returns the default bridge's IPv4 subnet: the one configured,
// an external bridge's own, the one it had, or the first free.
func (n *Networks) defaultSubnet(host *Host, r, before *record) (dnet.IPAMConfig, error) {
	bip := n.o.BIP
	if !bip.IsValid() && r.External {
		i := slices.IndexFunc(host.Devices[r.Device].Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() })
		if i < 0 {
			return dnet.IPAMConfig{}, api.Errorf(api.Invalid, "bridge %s has no IPv4 address; give it one or say which with --bip", r.Device)
		}
		bip = host.Devices[r.Device].Addresses[i]
	}
	if !bip.IsValid() {
		busy := n.busy(host)
		had := addressing(&before.Network, false)
		if len(had) > 0 && !slices.ContainsFunc(busy, had[0].Subnet.Overlaps) && !before.External {
			bip = netip.PrefixFrom(had[0].Gateway, had[0].Subnet.Bits())
		} else {
			s, err := freeSubnet(n.o.Pools, false, busy)
			if err != nil {
				return dnet.IPAMConfig{}, err
			}
			bip = netip.PrefixFrom(s.Addr().Next(), s.Bits())
		}
	}
	c := subnetConfig(bip)
	if f := n.o.FixedCIDR; f.IsValid() {
		if !within(f, bip) {
			return c, api.Errorf(api.Invalid, "fixed-cidr %s is not inside its subnet %s", f, bip.Masked())
		}
		c.IPRange = f.Masked()
	}
	return c, nil
}

// subnetConfig returns the subnet whose gateway has the address given.
func subnetConfig(p netip.Prefix) dnet.IPAMConfig {
	return dnet.IPAMConfig{Subnet: p.Masked(), Gateway: p.Addr()}
}

// busy lists what new subnets must not overlap. Callers hold mu or are New.
func (n *Networks) busy(host *Host) []netip.Prefix {
	l := slices.Clone(host.Prefixes)
	for r := range n.addressed() {
		for _, c := range r.Network.IPAM.Config {
			l = append(l, c.Subnet)
		}
	}
	return l
}

// addressed are the networks that there are and those that are being made, but for
// configuration networks: they have no addresses, those that are made from them do.
// Callers hold mu or are New.
func (n *Networks) addressed() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for _, w := range n.nets {
			if !w.Network.ConfigOnly && !yield(w.record) {
				return
			}
		}
		for _, r := range n.creating {
			if !r.Network.ConfigOnly && !yield(r) {
				return
			}
		}
	}
}
