package linux

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// direct lets in what is sent to containers' own addresses, as far as the bridge's mode
// and the devices that it trusts allow it.
func (b *tableBuilder) direct(c *nftables.Chain, br *network.Bridge, r *ruleset) {
	to, accept := oif(expr.CmpOpEq, br.Device), verdict(expr.VerdictAccept)
	switch br.Mode(b.v6()) {
	case network.GatewayRouted:
		icmp := byte(unix.IPPROTO_ICMP)
		if b.v6() {
			icmp = unix.IPPROTO_ICMPV6
		}
		b.rule(c, to, l4proto(icmp), accept)
		b.rule(c, to, b.isOpen(), accept)
	case network.GatewayUnprotected:
		// From outside, not from other networks' containers.
		for _, other := range r.bridges {
			if other != br {
				b.rule(c, iif(expr.CmpOpEq, other.Device), to, verdict(expr.VerdictDrop))
			}
		}
		b.rule(c, to, accept)
	default:
		if br.TrustAll {
			b.rule(c, to, b.isOpen(), accept)
			return
		}
		for _, device := range br.Trusted {
			b.rule(c, iif(expr.CmpOpEq, device), to, b.isOpen(), accept)
		}
	}
}

// isOpen matches what is sent to an open port.
func (b *tableBuilder) isOpen() []expr.Any {
	return append(b.loadAddrPort(), &expr.Lookup{SourceRegister: reg32, SetName: b.open.Name, SetID: b.open.ID})
}

// changeOpen closes and opens ports.
func (b *tableBuilder) changeOpen(have, want map[network.PortKey]bool) error {
	var closed, opened []nftables.SetElement
	for k := range have {
		if !want[k] {
			closed = append(closed, nftables.SetElement{Key: portKey(k)})
		}
	}
	for k := range want {
		if !have[k] {
			opened = append(opened, nftables.SetElement{Key: portKey(k)})
		}
	}
	if len(closed) > 0 {
		if err := b.c.SetDeleteElements(b.open, closed); err != nil {
			return err
		}
	}
	if len(opened) > 0 {
		return b.c.SetAddElements(b.open, opened)
	}
	return nil
}

// source gives what leaves a network the address that is set for it, or else that of
// the device.
func (b *tableBuilder) source(br *network.Bridge) []expr.Any {
	a := br.Source(b.v6())
	if !a.IsValid() {
		return []expr.Any{&expr.Masq{}}
	}
	return []expr.Any{
		&expr.Immediate{Register: reg32, Data: a.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: uint32(b.family), RegAddrMin: reg32},
	}
}
