package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// slowNetworks are acted on when the test says so.
type slowNetworks struct{ applied chan error }

func (*slowNetworks) DataAddr() netip.Addr { return netip.Addr{} }

func (*slowNetworks) Told(*api.OverlayUpdate) {}

func (n *slowNetworks) Applied(ctx context.Context) error {
	select {
	case err := <-n.applied:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// clerk is a manager that notes what is confirmed.
type clerk struct {
	swarmpb.OverlaysClient
	confirmed []uint64
	err       error
}

func (c *clerk) Confirm(_ context.Context, r *swarmpb.ConfirmRequest, _ ...grpc.CallOption) (*swarmpb.ConfirmResponse, error) {
	c.confirmed = append(c.confirmed, r.GetNumber())
	return &swarmpb.ConfirmResponse{}, c.err
}

// A node confirms what it has acted on, and nothing before; the newest stands for all
// that came meanwhile. That it can't do or say so ends no session.
func TestConfirm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		networks, manager := &slowNetworks{applied: make(chan error)}, &clerk{}
		s := &session{
			Agent:         &Agent{cfg: Config{Overlays: networks, Log: slog.New(slog.DiscardHandler)}},
			overlayClient: manager, toConfirm: make(chan uint64, 1),
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.confirm(ctx) }()
		has := func(why string, want ...uint64) {
			t.Helper()
			if synctest.Wait(); !slices.Equal(manager.confirmed, want) {
				t.Errorf("%s: confirmed %v, want %v", why, manager.confirmed, want)
			}
		}
		for _, n := range []uint64{0, 3, 0, 5, 6} {
			s.confirmLater(n)
			has("nothing is done")
		}
		networks.applied <- nil
		has("the first is acted on", 3)
		networks.applied <- nil
		has("the others are", 3, 6)
		s.confirmLater(7)
		networks.applied <- errors.New("the data plane does not answer")
		has("it could not be done", 3, 6)
		manager.err = errors.New("no answer")
		s.confirmLater(8)
		networks.applied <- nil
		has("the manager does not answer", 3, 6, 8)
		s.confirmLater(9)
		networks.applied <- nil
		has("it goes on", 3, 6, 8, 9)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// Without a manager nobody is waited for.
func TestWithdrawnNeedsAManager(t *testing.T) {
	a := &Agent{link: link{changed: make(chan struct{})}, withdrawing: make(chan struct{}, 1)}
	for range 2 {
		if err := a.Withdrawn(t.Context()); !api.Is(err, api.Unavailable) || err.Error() != "this node has no session with a manager of its swarm" {
			t.Error(err)
		}
	}
	a.withdrawing <- struct{}{} // as many are under way as may
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Withdrawn(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
