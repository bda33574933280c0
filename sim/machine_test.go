package sim

import (
	"context"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec/exectest"
)

// Generic resources of a host: gpu has names, licence is a number.
const (
	gpu      = "gpu"
	gpus     = 2
	licence  = "licence"
	licences = 3
)

// machine is what a host has to run tasks with.
type machine struct{ *exectest.Fake }

// Describe adds generic resources.
func (m machine) Describe(ctx context.Context) (*swarm.NodeDescription, error) {
	d, err := m.Fake.Describe(ctx)
	if err != nil {
		return nil, err
	}
	d.Resources.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: licence, Value: licences}}}
	for _, name := range []string{"a", "b"}[:gpus] {
		d.Resources.GenericResources = append(d.Resources.GenericResources, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: gpu, Value: name}})
	}
	return d, nil
}
