package dockerapi

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// networkRequest is a network.CreateRequest whose addresses are words, so that one
// that can't be read is refused by the name of its field.
type networkRequest struct {
	network.CreateRequest
	IPAM *struct { // in place of CreateRequest's
		Driver  string
		Options map[string]string
		Config  []struct {
			Subnet, IPRange, Gateway string
			AuxAddress               map[string]string `json:"AuxiliaryAddresses"`
		}
	}
}

func (q *networkRequest) request() (*network.CreateRequest, error) {
	r := q.CreateRequest
	if q.IPAM == nil {
		return &r, nil
	}
	r.IPAM = &network.IPAM{Driver: q.IPAM.Driver, Options: q.IPAM.Options}
	for _, c := range q.IPAM.Config {
		var cfg network.IPAMConfig
		var err error
		if cfg.Subnet, err = prefixIn(r.Name, "subnet", c.Subnet); err != nil {
			return nil, err
		}
		if cfg.IPRange, err = prefixIn(r.Name, "ip-range", c.IPRange); err != nil {
			return nil, err
		}
		if cfg.Gateway, err = addressIn(r.Name, "gateway", c.Gateway); err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(c.AuxAddress)) {
			a, err := addressIn(r.Name, "auxiliary address "+name, c.AuxAddress[name])
			if err != nil {
				return nil, err
			}
			if cfg.AuxAddress == nil {
				cfg.AuxAddress = map[string]netip.Addr{}
			}
			cfg.AuxAddress[name] = a
		}
		r.IPAM.Config = append(r.IPAM.Config, cfg)
	}
	return &r, nil
}

// prefixIn reads a field of a network's request; empty: not given.
func prefixIn(network, field, s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, api.Errorf(api.Invalid, "network %s: invalid %s %q: want an address with the length of its prefix, such as 10.20.0.0/16", network, field, s)
	}
	return p, nil
}

func addressIn(network, field, s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return a, api.Errorf(api.Invalid, "network %s: invalid %s %q: want an address, such as 10.20.0.1", network, field, s)
	}
	return a, nil
}
