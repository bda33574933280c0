package control

import (
	"context"

	"github.com/moby/moby/api/types/swarm"
)

// ServiceRotate updates a service in the name of its label legion.rotate: see
// package rotator. Its login stays.
func (c *Control) ServiceRotate(ctx context.Context, id string, version uint64, spec *swarm.ServiceSpec) error {
	_, err := c.ServiceUpdate(ctx, id, version, spec, ServiceOptions{})
	return err
}
