package node

import (
	"context"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/network"
)

// attacher has managers give this node's containers their places in networks of the
// swarm.
type attacher struct{ agent *agent.Agent }

var _ network.Swarm = attacher{}

func (a attacher) Attach(ctx context.Context, r network.AttachRequest) (*network.Grant, error) {
	q := agent.AttachRequest{Network: r.Network, Container: r.Container, Addresses: r.Addresses}
	if len(r.Names) > 0 {
		q.Name, q.Aliases = r.Names[0], r.Names[1:]
	}
	m, err := a.agent.Attach(ctx, q)
	if err != nil {
		return nil, err
	}
	return &network.Grant{ID: m.ID, Container: r.Container, Network: m.Network, Addresses: m.Addresses}, nil
}

func (a attacher) Detach(ctx context.Context, ids []string) error { return a.agent.Detach(ctx, ids) }

func (a attacher) Withdrawn(ctx context.Context) error { return a.agent.Withdrawn(ctx) }

func (a attacher) Attached(ctx context.Context) ([]network.Grant, error) {
	all, err := a.agent.Attached(ctx)
	if err != nil {
		return nil, err
	}
	grants := make([]network.Grant, 0, len(all))
	for _, m := range all {
		grants = append(grants, network.Grant{ID: m.ID, Container: m.Container, Network: m.Network, Addresses: m.Addresses})
	}
	return grants, nil
}
