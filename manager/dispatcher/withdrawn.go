package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// withdrawLimit bounds how long nodes are waited for that don't confirm, and
	// withdrawSlack how much later other managers say which.
	withdrawLimit = 3 * time.Second
	withdrawSlack = 500 * time.Millisecond
	// withdrawGap is how long those who ask are gathered.
	withdrawGap = 10 * time.Millisecond
	// maxNamed bounds the nodes that an error names.
	maxNamed = 8
)

// Confirm implements the Overlays service.
func (d *Dispatcher) Confirm(ctx context.Context, req *swarmpb.ConfirmRequest) (*swarmpb.ConfirmResponse, error) {
	node, err := d.caller(ctx)
	if err != nil {
		return nil, err
	}
	d.overlays.confirm(node, req.GetNumber())
	return &swarmpb.ConfirmResponse{}, nil
}

// Withdrawn implements the Overlays service.
func (d *Dispatcher) Withdrawn(ctx context.Context, req *swarmpb.WithdrawnRequest) (*swarmpb.WithdrawnResponse, error) {
	node, err := d.caller(ctx)
	if err != nil {
		return nil, err
	}
	if index := req.GetIndex(); index > 0 {
		return &swarmpb.WithdrawnResponse{}, d.overlays.withdrawn(ctx, index)
	}
	return &swarmpb.WithdrawnResponse{}, d.withdrawnEverywhere(ctx, node)
}

// withdrawals has all who ask in the same moment share one question to the other
// managers.
type withdrawals struct {
	mu   sync.Mutex
	next *withdrawal // that is being gathered; nil: there is none
}

// withdrawal is one question.
type withdrawal struct {
	nodes map[string]bool // who ask; guarded by withdrawals.mu until it is put
	done  chan struct{}
	err   error // valid once done is closed
}

// withdrawnEverywhere returns when no node sends new work to those of a node's tasks
// that are to end.
func (d *Dispatcher) withdrawnEverywhere(ctx context.Context, node string) error {
	d.withdrawals.mu.Lock()
	w := d.withdrawals.next
	if w == nil {
		w = &withdrawal{nodes: map[string]bool{}, done: make(chan struct{})}
		if !d.background(func(ctx context.Context) { d.withdraw(ctx, w) }) {
			d.withdrawals.mu.Unlock()
			return api.Errorf(api.Unavailable, "this manager is stopping")
		}
		d.withdrawals.next = w
	}
	w.nodes[node] = true
	d.withdrawals.mu.Unlock()
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// withdraw gathers who asks, puts the question and has the answer.
func (d *Dispatcher) withdraw(ctx context.Context, w *withdrawal) {
	defer close(w.done)
	t := time.NewTimer(withdrawGap)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	d.withdrawals.mu.Lock()
	d.withdrawals.next = nil
	d.withdrawals.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, withdrawLimit+withdrawSlack)
	defer cancel()
	index, err := d.toldToEnd(ctx, w.nodes)
	if err != nil || index == 0 {
		w.err = err
		return
	}
	others := d.otherManagers()
	errs := make([]error, 1+len(others))
	var wait sync.WaitGroup
	for i, addr := range others {
		wait.Go(func() {
			if err := d.withdrawnThrough(ctx, addr, index); err != nil {
				errs[1+i] = fmt.Errorf("through manager %s: %w", addr, err)
			}
		})
	}
	errs[0] = d.overlays.withdrawn(ctx, index)
	wait.Wait()
	w.err = errors.Join(errs...)
}

// toldToEnd returns up to which index the log says of nodes' tasks that they are to
// end; 0: of none.
func (d *Dispatcher) toldToEnd(ctx context.Context, nodes map[string]bool) (index uint64, err error) {
	// They may have heard it from another manager.
	if err := d.cfg.Sync(ctx); err != nil {
		return 0, err
	}
	view := d.cfg.Store.View()
	for node := range nodes {
		for t := range store.List[*api.Task](view, store.ByNode(node)) {
			if live(t) && api.ToldToEnd(t.DesiredState) {
				index = max(index, t.Version.Index)
			}
		}
	}
	return index, nil
}

// otherManagers returns where the managers are that serve nodes, but for this one.
func (d *Dispatcher) otherManagers() []string {
	if d.cfg.Dial == nil {
		return nil
	}
	view := d.cfg.Store.View()
	var addrs []string
	for n := range store.List[*api.Node](view) {
		if n.Session.Manager == d.cfg.Node || n.Status.State == swarm.NodeStateDown {
			continue
		}
		if addr := managerAddr(store.Get[*api.Node](view, n.Session.Manager)); addr != "" && !slices.Contains(addrs, addr) {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func (d *Dispatcher) withdrawnThrough(ctx context.Context, addr string, index uint64) error {
	conn, err := d.cfg.Dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	_, err = swarmpb.NewOverlaysClient(conn).Withdrawn(ctx, &swarmpb.WithdrawnRequest{Index: index})
	return err
}

// reached says that what the log has up to index is marked.
func (o *overlays) reached(index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = max(o.seen, index)
	close(o.advanced)
	o.advanced = make(chan struct{})
}

// reach waits for that.
func (o *overlays) reach(ctx context.Context, index uint64) error {
	for {
		o.mu.Lock()
		seen, advanced := o.seen, o.advanced
		o.mu.Unlock()
		if seen >= index {
			return nil
		}
		select {
		case <-advanced:
		case <-ctx.Done():
			return api.Errorf(api.DeadlineExceeded, "this manager has the log up to %d, and %d is asked for: %w", seen, index, ctx.Err())
		}
	}
}

// withdrawn returns when all nodes that this manager tells have acted on what the
// log has up to index, or after withdrawLimit, with the names of those that have not.
func (o *overlays) withdrawn(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, withdrawLimit)
	defer cancel()
	if err := o.reach(ctx, index); err != nil {
		return err
	}
	due := map[*endpointStream]uint64{}
	o.mu.Lock()
	for _, streams := range o.byNode {
		for s := range streams {
			if n := s.due(); n > 0 {
				due[s] = n
			}
		}
	}
	o.mu.Unlock()
	var late []string
	for s, n := range due {
		if !s.await(ctx, n) {
			late = append(late, s.node)
		}
	}
	if len(late) == 0 {
		return nil
	}
	slices.Sort(late)
	return api.Errorf(api.DeadlineExceeded, "%d nodes have not said that they have taken tasks out which are to end (%s)", len(late), strings.Join(late[:min(len(late), maxNamed)], ", "))
}

// confirm notes that a node has acted on an update.
func (o *overlays) confirm(node string, number uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.byNode[node] {
		s.confirm(number)
	}
}

func (s *endpointStream) confirm(number uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number = min(number, s.sent); number > s.confirmed {
		s.confirmed = number
		close(s.acted)
		s.acted = make(chan struct{})
	}
}

// due returns the number that the node has confirmed once it has acted on all that
// is marked; 0: it has.
func (s *endpointStream) due() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.numbers == nil:
		return 0
	case s.marks.all || s.marks.takesOut:
		return s.sent + 1 // at least: the next update's
	case s.sent > s.confirmed:
		return s.sent
	}
	return 0
}

// await reports whether the node has confirmed a number, or is told nothing any more,
// before ctx ended.
func (s *endpointStream) await(ctx context.Context, number uint64) bool {
	for {
		s.mu.Lock()
		confirmed, acted := s.confirmed, s.acted
		s.mu.Unlock()
		if confirmed >= number {
			return true
		}
		select {
		case <-acted:
		case <-s.gone:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
