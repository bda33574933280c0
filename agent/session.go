package agent

import (
	"context"
	"errors"
	"io"
	"reflect"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	callTimeout      = 5 * time.Second
	minCallTimeout   = time.Second
	connectTimeout   = 2 * time.Second
	farewellTimeout  = 300 * time.Millisecond
	minHeartbeat     = 100 * time.Millisecond
	maxHeartbeat     = time.Hour
	defaultHeartbeat = 5 * time.Second
)

var errDescription = errors.New("the node's description changed")

type session struct {
	*Agent
	id         string
	dispatcher swarmpb.DispatcherClient
	logs       swarmpb.LogBrokerClient
	// overlayClient is Legion's own service, which other managers lack.
	overlayClient swarmpb.OverlaysClient
	toConfirm     chan uint64 // the newest update that is not confirmed
	description   *swarm.NodeDescription
}

// runSession keeps one session until it breaks. began reports whether a manager
// took the node in.
func (a *Agent) runSession(ctx context.Context) (began bool, err error) {
	description, err := a.describe(ctx)
	if err != nil {
		return false, err
	}
	conn, addr, err := a.cfg.Dial(ctx)
	if err != nil {
		return false, err
	}
	// Beside, because that waits for what is unsent, and a manager that has gone
	// silent takes nothing.
	defer a.worker.wg.Go(func() { _ = conn.Close() })
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	defer func() {
		if outer.Err() == nil && !errors.Is(err, errDescription) {
			a.cfg.Managers.Failed(addr)
			if !began {
				a.cfg.Failed(addr, err)
			}
		}
	}()
	s := &session{
		Agent: a, description: description, toConfirm: make(chan uint64, 1),
		dispatcher: swarmpb.NewDispatcherClient(conn), logs: swarmpb.NewLogBrokerClient(conn), overlayClient: swarmpb.NewOverlaysClient(conn),
	}
	tooLong := time.AfterFunc(callTimeout, func() {
		cancel(api.Errorf(api.DeadlineExceeded, "the manager does not answer"))
	})
	defer tooLong.Stop()
	if err := connect(ctx, conn); err != nil {
		return false, err
	}
	stream, err := s.dispatcher.Session(ctx, &swarmpb.SessionRequest{
		Description: swarmpb.NewNodeDescription(description), SessionId: a.session,
	})
	if err != nil {
		return false, first(context.Cause(ctx), err)
	}
	m, err := stream.Recv()
	if err != nil {
		return false, first(context.Cause(ctx), err)
	}
	if !tooLong.Stop() {
		return false, context.Cause(ctx)
	}
	s.id, a.session = m.GetSessionId(), m.GetSessionId()
	if err := s.told(ctx, m); err != nil {
		return false, err
	}
	a.cfg.Managers.Served(addr)
	a.cfg.Log.Debug("session with a manager", "session", s.id, "manager", addr)
	a.link.set(conn)
	err = s.run(ctx, stream, cancel)
	a.link.set(nil)
	if outer.Err() != nil {
		s.farewell(outer)
	}
	return true, err
}

// connect waits, but not long, until the connection stands. A reason for which it
// does not is left to the first call to tell.
func connect(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn.Connect()
	for s := conn.GetState(); s == connectivity.Idle || s == connectivity.Connecting; s = conn.GetState() {
		if !conn.WaitForStateChange(ctx, s) {
			return api.Errorf(api.DeadlineExceeded, "the manager does not answer within %v: %w", connectTimeout, ctx.Err())
		}
	}
	return nil
}

// farewell tells the manager that the node ends the session on purpose.
func (s *session) farewell(ended context.Context) {
	f := swarmpb.Farewell_FAREWELL_PAUSE
	if errors.Is(context.Cause(ended), ErrLeaving) {
		f = swarmpb.Farewell_FAREWELL_LEAVE
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ended), farewellTimeout)
	defer cancel()
	if _, err := s.dispatcher.Heartbeat(ctx, &swarmpb.HeartbeatRequest{SessionId: s.id, Farewell: f}); err != nil {
		s.cfg.Log.Debug("no manager heard the farewell", "err", err)
	}
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// run serves the session until one of its parts fails.
func (s *session) run(ctx context.Context, stream interface {
	Recv() (*swarmpb.SessionMessage, error)
}, cancel context.CancelCauseFunc) error {
	g, ctx := errgroup.WithContext(ctx)
	// The stream lives in the outer context: end that with the first failure.
	defer context.AfterFunc(ctx, func() { cancel(nil) })()
	g.Go(func() error {
		for {
			m, err := stream.Recv()
			if err != nil {
				return ended(err)
			}
			if err := s.told(ctx, m); err != nil {
				return err
			}
		}
	})
	g.Go(func() error { return s.heartbeat(ctx) })
	g.Go(func() error { return s.assignments(ctx) })
	g.Go(func() error { return s.overlays(ctx) })
	g.Go(func() error { return s.confirm(ctx) })
	g.Go(func() error { return s.reporter.run(ctx, s.report) })
	g.Go(func() error { return s.watchDescription(ctx) })
	g.Go(func() error { return s.serveLogs(ctx) })
	return g.Wait()
}

func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return api.Errorf(api.Unavailable, "the manager ended the session")
	}
	return err
}

func (a *Agent) describe(ctx context.Context) (*swarm.NodeDescription, error) {
	d, err := a.cfg.Executor.Describe(ctx)
	if err != nil || a.cfg.TLSInfo == nil {
		return d, err
	}
	whole := *d
	whole.TLSInfo = a.cfg.TLSInfo()
	return &whole, nil
}

// told takes a message of the session.
func (s *session) told(ctx context.Context, m *swarmpb.SessionMessage) error {
	n := Notice{RootCert: m.GetRootCA()}
	var managers []Manager
	for _, w := range m.GetManagers() {
		p := swarm.Peer{NodeID: w.GetPeer().GetNodeId(), Addr: w.GetPeer().GetAddr()}
		managers = append(managers, Manager{Peer: p, Weight: w.GetWeight()})
		n.Managers = append(n.Managers, p)
	}
	s.cfg.Managers.Set(managers)
	if m.GetNode() != nil {
		n.Node = m.GetNode().API()
		if err := s.cfg.Executor.Configure(ctx, n.Node); err != nil {
			return err
		}
	}
	s.cfg.Notify(n)
	return nil
}

// heartbeat sends them. A manager that leaves one unanswered for a period is left.
func (s *session) heartbeat(ctx context.Context) error {
	for timeout := callTimeout; ; {
		call, cancel := context.WithTimeout(ctx, timeout)
		r, err := s.dispatcher.Heartbeat(call, &swarmpb.HeartbeatRequest{SessionId: s.id})
		cancel()
		if err != nil {
			return err
		}
		period := r.GetPeriod().AsDuration()
		if period <= 0 {
			period = defaultHeartbeat
		}
		timeout = min(max(period, minCallTimeout), callTimeout)
		if !sleep(ctx, min(max(period, minHeartbeat), maxHeartbeat)) {
			return ctx.Err()
		}
	}
}

// assignments hands the manager's assignments to the worker.
func (s *session) assignments(ctx context.Context) error {
	stream, err := s.dispatcher.Assignments(ctx, &swarmpb.AssignmentsRequest{SessionId: s.id})
	if err != nil {
		return err
	}
	at := ""
	for {
		m, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		switch m.GetType() {
		case swarmpb.AssignmentsMessage_COMPLETE:
			s.worker.replace(ctx, m.GetChanges())
		case swarmpb.AssignmentsMessage_INCREMENTAL:
			if m.GetAppliesTo() != at {
				return api.Errorf(api.Internal, "assignments: an increment to %q came after %q", m.GetAppliesTo(), at)
			}
			s.worker.change(m.GetChanges())
		default:
			return api.Errorf(api.Internal, "assignments: message of unknown type %d", m.GetType())
		}
		at = m.GetResultsIn()
	}
}

func (s *session) report(ctx context.Context, batch []taskStatus) error {
	r := &swarmpb.UpdateTaskStatusRequest{SessionId: s.id}
	for _, b := range batch {
		r.Updates = append(r.Updates, &swarmpb.UpdateTaskStatusRequest_TaskStatusUpdate{
			TaskId: b.id, Status: swarmpb.NewTaskStatus(b.status),
		})
	}
	_, err := s.dispatcher.UpdateTaskStatus(ctx, r)
	return err
}

// watchDescription ends the session when the node's description changed: a new
// one tells the managers.
func (s *session) watchDescription(ctx context.Context) error {
	t := time.NewTicker(s.cfg.DescribeEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		case <-s.changed:
		}
		d, err := s.describe(ctx)
		if err != nil {
			s.cfg.Log.Warn("describing the node", "err", err)
			continue
		}
		if !reflect.DeepEqual(d, s.description) {
			s.session = ""
			return errDescription
		}
	}
}
