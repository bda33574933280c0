package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// notConnected are containers that are in no network.
type notConnected struct{ told }

var errNotConnected = errors.New("not connected")

func (notConnected) NetworkDisconnect(context.Context, string, string, bool) error {
	return errNotConnected
}

// TestDisconnectNamesWhatIsMissing: the network, if there is none; else what the
// container says.
func TestDisconnectNamesWhatIsMissing(t *testing.T) {
	local, err := network.New(t.Context(), network.Options{
		Dataplane: networktest.NewFake(), Dir: t.TempDir(), RuntimeDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := networks{local: local, containers: &notConnected{}, swarm: func() (swarmNetworks, error) { return nil, nil }}
	r := &dnet.DisconnectRequest{Container: "web", Force: true}
	if err := n.NetworkDisconnect(t.Context(), "nosuch", r); !api.Is(err, api.NotFound) || err.Error() != "network nosuch not found" {
		t.Error(err)
	}
	if err := n.NetworkDisconnect(t.Context(), "bridge", r); !errors.Is(err, errNotConnected) {
		t.Error(err)
	}
}
