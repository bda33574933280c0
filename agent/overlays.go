package agent

import (
	"context"
	"net/netip"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// Limits on one update, which may come in several messages.
const (
	maxTold         = 1 << 19 // endpoints, services and removals
	maxToldNetworks = 1 << 13
)

// Overlays takes what managers say of the overlays that the node has a part in. It
// keeps what it was told last while no manager says anything. Methods are called
// from one goroutine and must not block.
type Overlays interface {
	// DataAddr is by which of its addresses other nodes reach this one; zero: as
	// the managers see it.
	DataAddr() netip.Addr
	// Told takes an update, which is the callee's from then on.
	Told(u *api.OverlayUpdate)
	// Applied returns when nobody on this node is sent any more to what has been
	// taken out before the call. It may block, and is called from another goroutine.
	Applied(ctx context.Context) error
}

// overlays hands on what the manager says of overlays. A manager that is not one
// of ours says nothing: then nodes can't reach each other's tasks, but all else works.
func (s *session) overlays(ctx context.Context) error {
	if s.cfg.Overlays == nil {
		return nil
	}
	req := &swarmpb.EndpointsRequest{Confirms: true}
	if a := s.cfg.Overlays.DataAddr(); a.IsValid() {
		req.DataAddr = a.String()
	}
	stream, err := s.overlayClient.Endpoints(ctx, req)
	var t telling
	for err == nil {
		var m *swarmpb.EndpointsUpdate
		if m, err = stream.Recv(); err == nil {
			var u *api.OverlayUpdate
			if u, err = t.take(m); u != nil {
				s.cfg.Overlays.Told(u)
				s.confirmLater(m.GetNumber())
			}
		}
	}
	if api.Is(err, api.Unimplemented) || grpcstatus.Code(err) == codes.Unimplemented {
		s.cfg.Log.Warn("the manager does not tell of endpoints: tasks of overlay networks on other nodes can't be reached")
		<-ctx.Done()
		return ctx.Err()
	}
	return ended(err)
}

// confirmLater has confirm say that an update is acted on. Only overlays calls it.
func (s *session) confirmLater(number uint64) {
	if number == 0 {
		return
	}
	select {
	case <-s.toConfirm: // an older one
	default:
	}
	s.toConfirm <- number
}

// confirm tells the manager which update the node has acted on, one for all that came
// meanwhile. If it can't be told, those who end tasks wait for as long as they may.
func (s *session) confirm(ctx context.Context) error {
	for {
		var number uint64
		select {
		case number = <-s.toConfirm:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := s.cfg.Overlays.Applied(ctx)
		if err == nil {
			called, cancel := context.WithTimeout(ctx, callTimeout)
			_, err = s.overlayClient.Confirm(called, &swarmpb.ConfirmRequest{Number: number})
			cancel()
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Debug("the manager is not told that this node has acted on an update of endpoints", "number", number, "err", err)
		}
	}
}

// maxWithdrawing bounds the calls under way: they share a connection with
// heart-beats.
const maxWithdrawing = 256

// Withdrawn returns when managers say that no node sends new work to tasks of this
// one that are to end. It waits for no manager. DeadlineExceeded names nodes of which
// that is not known. Safe for concurrent use.
func (a *Agent) Withdrawn(ctx context.Context) error {
	select {
	case a.withdrawing <- struct{}{}:
		defer func() { <-a.withdrawing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, _ := a.link.get()
	if conn == nil {
		return errNoSession()
	}
	_, err := swarmpb.NewOverlaysClient(conn).Withdrawn(ctx, &swarmpb.WithdrawnRequest{})
	if grpcstatus.Code(err) == codes.Unimplemented {
		return api.Errorf(api.Unimplemented, "the manager does not know what nodes have heard: %w", err)
	}
	return err
}

// telling is an update of which messages are still to come.
type telling struct {
	u    *api.OverlayUpdate
	size int
}

// take returns the update that a message completes; nil: there is more to come.
func (t *telling) take(m *swarmpb.EndpointsUpdate) (*api.OverlayUpdate, error) {
	u := m.API()
	for i := range u.Networks {
		n := &u.Networks[i]
		if !validID(n.ID) {
			return nil, api.Errorf(api.Internal, "the manager tells of a network with the impossible id %q", n.ID)
		}
		t.size += 1 + len(n.Put) + len(n.Remove) + len(n.PutServices) + len(n.RemoveServices)
	}
	if t.u != nil {
		if u.Keys != nil {
			t.u.Keys = u.Keys
		}
		t.u.Networks = append(t.u.Networks, u.Networks...)
		u = t.u
	}
	if t.size > maxTold || len(u.Networks) > maxToldNetworks {
		return nil, api.Errorf(api.ResourceExhausted, "the manager tells of more than this node can take: %d networks, %d endpoints and services; at most %d and %d are taken",
			len(u.Networks), t.size, maxToldNetworks, maxTold)
	}
	if t.u = u; m.GetMore() {
		return nil, nil
	}
	*t = telling{}
	return u, nil
}
