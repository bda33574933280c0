package dispatcher

import (
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// overlayKeys are the keys of encrypted networks; none if the cluster has none.
func overlayKeys(c *api.Cluster) *swarmpb.OverlayKeys {
	m := &swarmpb.OverlayKeys{}
	if c == nil {
		return m
	}
	m.Send = c.NetworkKeys.Send
	for _, k := range c.NetworkKeys.Keys {
		m.Keys = append(m.Keys, &swarmpb.OverlayKey{Id: k.ID, Secret: k.Secret[:]})
	}
	return m
}

// keysFor are what a node that is in these networks is told: none, unless one of
// them is encrypted; nil if it was told the same last, which is was.
func keysFor(view *store.View, networks map[string]struct{}, was *swarmpb.OverlayKeys) *swarmpb.OverlayKeys {
	m := &swarmpb.OverlayKeys{}
	for id := range networks {
		if n := store.Get[*api.Network](view, id); n != nil && n.Encrypted() {
			m = overlayKeys(clusterIn(view))
			break
		}
	}
	if proto.Equal(m, was) {
		return nil
	}
	return m
}
