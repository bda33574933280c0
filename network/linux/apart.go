package linux

import (
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Containers whose bridge keeps them apart reach ports that others on it publish by the
// host's addresses. Where frames in bridges pass the packet filter, which other software
// turns on for the whole host (bridge-nf-call-iptables), the kernel would translate them
// while they are in the bridge, and pass them straight on to the other container's port
// of the bridge, where they are dropped. So they are left to the sockets that hold the
// host's ports.

// relaysBridges reports whether there are bridges that it matters for.
func (r *ruleset) relaysBridges() bool {
	return r.relayed && slices.ContainsFunc(r.bridges, func(b *network.Bridge) bool { return b.Isolated })
}

// framesPassRules reports whether frames in the host's bridges pass a family's rules.
func (p *Plane) framesPassRules(f nftables.TableFamily) bool {
	path := "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if f == nftables.TableFamilyIPv6 {
		path = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	}
	var value []byte
	err := p.inHost(func() (err error) {
		value, err = os.ReadFile(path)
		return err
	})
	return err == nil && strings.TrimSpace(string(value)) != "0" // there is none without the module
}

// leaveToRelays has the sockets take connections of containers that are kept apart, and
// datagrams where the kernel would lose them: relayed flows end with the daemon.
func (b *tableBuilder) leaveToRelays(c *nftables.Chain, r *ruleset) {
	if !r.relaysBridges() {
		return
	}
	for _, br := range r.bridges {
		if !br.Isolated {
			continue
		}
		b.rule(c, iif(expr.CmpOpEq, br.Device), l4proto(unix.IPPROTO_TCP), verdict(expr.VerdictReturn))
		if r.framed {
			b.rule(c, iif(expr.CmpOpEq, br.Device), l4proto(unix.IPPROTO_UDP), verdict(expr.VerdictReturn))
		}
	}
}
