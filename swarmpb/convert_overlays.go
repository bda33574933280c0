package swarmpb

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// Limits on what one endpoint or service may have.
const (
	maxOverlayName    = 253 // of the DNS
	maxOverlayAliases = 256
	maxOverlayPorts   = 1024
	maxOverlayOn      = 64
	maxOverlayKeys    = 8
)

// API converts back. What is not complete is left out: an address that is none,
// an endpoint without any, a name that no resolver could be asked for.
func (x *EndpointsUpdate) API() *api.OverlayUpdate {
	u := &api.OverlayUpdate{Complete: x.GetComplete(), Keys: x.GetKeys().api()}
	if p := x.GetDataPort(); p <= 65535 {
		u.DataPort = uint16(p)
	}
	u.Networks = each(x.GetNetworks(), (*NetworkEndpoints).api)
	return u
}

func (x *NetworkEndpoints) api() api.NetworkUpdate {
	n := api.NetworkUpdate{
		ID: x.GetNetworkId(), Gone: x.GetGone(), Whole: x.GetWhole(), Remove: list(x.GetRemove()), RemoveServices: list(x.GetRemoveServices()),
	}
	for _, e := range x.GetPut() {
		if a, ok := e.api(); ok {
			n.Put = append(n.Put, a)
		}
	}
	for _, s := range x.GetPutServices() {
		n.PutServices = append(n.PutServices, s.api())
	}
	if x.GetNetwork() == nil {
		return n
	}
	n.Ingress = x.GetNetwork().API()
	for _, s := range x.GetOwnAddresses() {
		p := apiPrefix(s)
		if p.IsValid() && !slices.ContainsFunc(n.Own, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }) {
			n.Own = append(n.Own, p)
		}
	}
	return n
}

func (x *OverlayEndpoint) api() (api.OverlayEndpoint, bool) {
	e := api.OverlayEndpoint{
		ID: x.GetId(), Addresses: onePerFamily(x.GetAddresses()), Service: x.GetServiceId(), Aliases: overlayNames(x.GetAliases()), Serving: x.GetServing(),
	}
	if isOverlayName(x.GetName()) {
		e.Name = x.GetName()
	}
	if s := x.GetNodeAddr(); s != "" {
		var err error
		if e.Node, err = netip.ParseAddr(s); err != nil {
			return e, false
		}
	}
	return e, e.ID != "" && len(e.Addresses) > 0
}

func (x *OverlayService) api() api.OverlayService {
	s := api.OverlayService{
		ID: x.GetId(), VirtualAddresses: onePerFamily(x.GetVirtualAddresses()), Aliases: overlayNames(x.GetAliases()), Balance: api.Balance(x.GetBalance()),
	}
	if isOverlayName(x.GetName()) {
		s.Name = x.GetName()
	}
	for _, p := range x.GetPorts() {
		if len(s.Ports) < maxOverlayPorts && p.GetPublished()-1 < 65535 && p.GetTarget()-1 < 65535 && len(p.GetOn()) <= maxOverlayOn {
			s.Ports = append(s.Ports, api.OverlayPort{
				Protocol: p.GetProtocol(), Published: uint16(p.GetPublished()), Target: uint16(p.GetTarget()), On: list(p.GetOn()),
			})
		}
	}
	return s
}

func (x *OverlayKeys) api() *api.OverlayKeys {
	if x == nil {
		return nil
	}
	k := &api.OverlayKeys{Send: x.GetSend()}
	for _, m := range x.GetKeys() {
		if len(k.Keys) < maxOverlayKeys && len(m.GetSecret()) == 32 {
			k.Keys = append(k.Keys, api.OverlayKey{ID: m.GetId(), Secret: [32]byte(m.GetSecret())})
		}
	}
	return k
}

// onePerFamily reads addresses; of each family the first counts.
func onePerFamily(in []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range in {
		a, err := netip.ParseAddr(s)
		if a = a.Unmap(); err == nil && a.Zone() == "" && !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			out = append(out, a)
		}
	}
	return out
}

func overlayNames(in []string) []string {
	in = in[:min(len(in), maxOverlayAliases)]
	return list(slices.DeleteFunc(slices.Clone(in), func(s string) bool { return !isOverlayName(s) }))
}

func isOverlayName(s string) bool {
	return s != "" && len(s) <= maxOverlayName && !strings.ContainsAny(s, " \n\x00")
}
