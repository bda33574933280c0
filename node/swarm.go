package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/store"
)

// Docker's sentences.
const (
	notManager = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."
	isWorker   = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
	inSwarm    = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one."
	noSwarm    = "This node is not part of a swarm"

	// twoManagers is shown by "docker info" as it is.
	twoManagers = "WARNING: Running Swarm in a two-manager configuration. If either of them is lost, nothing can be\n" +
		"         changed until it is back. Promote a third node, or demote one of the two."
)

// initTimeout bounds how long "swarm init" waits for the node to be ready.
const initTimeout = 20 * time.Second

// swarmNode is the node's membership: none, or one member that runs. Changes
// are made one at a time.
type swarmNode struct {
	dir       string // <data-root>/swarm
	advertise string // --swarm-default-advertise-addr
	exec      exec.Executor
	// networks is told of overlays; nil: nobody is.
	networks *network.Networks
	log      *slog.Logger
	// removeTasks removes all tasks' containers from this node.
	removeTasks func(context.Context) error

	changing sync.Mutex // held while membership begins or ends

	mu   sync.Mutex
	life context.Context // the daemon's; nil before Run
	cur  *running        // nil: no member
	err  error           // why a member can't run
	// pending: a membership begins, and nobody knows yet how that ends.
	pending bool
	// changed is closed and replaced when cur changes; nil: nobody waits.
	changed chan struct{}
}

// running is a member with its life.
type running struct {
	*member
	stop context.CancelCauseFunc
	done chan struct{} // closed when run has returned
	err  error         // run's, once done
}

var _ dockerapi.Swarm = (*swarmNode)(nil)

// resume begins the membership that is on disk, if there is one. A member that
// can't begin leaves the node up, with the reason in its info.
func (s *swarmNode) resume(life context.Context) {
	s.changing.Lock()
	defer s.changing.Unlock()
	s.mu.Lock()
	s.life = life
	s.mu.Unlock()
	state, err := loadMembership(s.dir)
	if err == nil && state == nil {
		return
	}
	var m *member
	if err == nil {
		m, err = openMember(s.member(state, nil, true))
	}
	if err != nil {
		_ = s.failed(err) // it is in the node's info
		return
	}
	s.begin(m)
}

// failed notes why the member that is on disk can't begin, and returns it.
func (s *swarmNode) failed(err error) error {
	if s.networks != nil {
		s.networks.SetSwarm(nil)
	}
	if errors.Is(err, ca.ErrLocked) {
		err = errLocked
		s.log.Warn("this node is a manager of a swarm that is locked: unlock it with `docker swarm unlock`")
	} else {
		s.log.Error("this node is part of a swarm, but can't take part", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	return err
}

// member is what a member of this node needs.
func (s *swarmNode) member(state *membership, g *genesis, saved bool) memberConfig {
	return memberConfig{dir: s.dir, state: state, genesis: g, saved: saved, exec: s.exec, networks: s.networks, notify: s.poke, log: s.log}
}

// begin runs a member until it is ended or fails.
func (s *swarmNode) begin(m *member) *running {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, stop := context.WithCancelCause(s.life)
	r := &running{member: m, stop: stop, done: make(chan struct{})}
	s.set(r, nil)
	go func() {
		defer close(r.done)
		if r.err = m.run(ctx); r.err == nil {
			return
		}
		s.log.Error("the swarm member stopped; its containers run on", "err", r.err)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.cur == r {
			s.set(nil, r.err)
		}
	}()
	return r
}

// end stops the member, for that cause (nil: the daemon ends), and waits for it.
func (s *swarmNode) end(cause error) {
	s.mu.Lock()
	r := s.cur
	s.mu.Unlock()
	if r == nil {
		return
	}
	r.stop(cause)
	<-r.done
	s.mu.Lock()
	if s.cur == r {
		s.set(nil, nil)
	}
	s.mu.Unlock()
}

// set changes the member. Callers hold mu.
func (s *swarmNode) set(r *running, err error) {
	s.cur, s.err = r, err
	s.tell()
}

// poke tells who watches that the manager part came or went.
func (s *swarmNode) poke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tell()
}

// tell wakes who watches. Callers hold mu.
func (s *swarmNode) tell() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// watch returns the manager part that runs (nil: none does), and a channel that
// is closed when it is another one.
func (s *swarmNode) watch() (*managerPart, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	if s.cur == nil {
		return nil, s.changed
	}
	return s.cur.managing(), s.changed
}

// current returns the member that runs, or nil and why there is none: nil when
// the node is part of no swarm.
func (s *swarmNode) current() (*running, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur, s.err
}

// leading returns this node's manager part, while it is a manager that runs.
func (s *swarmNode) leading() (*managerPart, error) {
	r, err := s.current()
	if errors.Is(err, errLocked) {
		return nil, err
	}
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "this node's part in the swarm has failed: %w", err)
	}
	if r != nil {
		if p := r.managing(); p != nil {
			return p, nil
		}
		return nil, api.Errorf(api.Unavailable, "%s", isWorker)
	}
	return nil, api.Errorf(api.Unavailable, "%s", notManager)
}

// taken waits until the managers see this node as ready.
func (r *running) taken(ctx context.Context) error {
	var refused <-chan error // by the leader, as a manager
	if p := r.managing(); p != nil {
		refused = p.refused
	}
	select {
	case <-r.ready:
		return nil
	case err := <-refused:
		return err
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return api.Errorf(api.DeadlineExceeded, "the swarm was not ready in time: %w; the daemon's log says what it waits for", ctx.Err())
	}
}

// settle makes the node one without a swarm, whatever was wrong before.
func (s *swarmNode) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(nil, nil)
}

// SwarmInspect returns the swarm as managers see it.
func (s *swarmNode) SwarmInspect(ctx context.Context) (*swarm.Swarm, error) {
	r, err := s.leading()
	if err != nil {
		return nil, err
	}
	r.fresh(ctx)
	return r.control.SwarmInspect(ctx)
}

// begins notes that a membership begins, until the function that it returns is
// called.
func (s *swarmNode) begins() (over func()) {
	set := func(pending bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pending = pending
	}
	set(true)
	return func() { set(false) }
}

// state is what _ping and info say of the node.
func (s *swarmNode) state() (swarm.LocalNodeState, error) {
	s.mu.Lock()
	cur, err, pending := s.cur, s.err, s.pending
	s.mu.Unlock()
	switch {
	case pending:
		return swarm.LocalNodeStatePending, nil
	case cur != nil:
		return swarm.LocalNodeStateActive, nil
	case errors.Is(err, errLocked):
		return swarm.LocalNodeStateLocked, err
	case err != nil:
		return swarm.LocalNodeStateError, err
	}
	return swarm.LocalNodeStateInactive, nil
}

// info is the swarm's part of the node's info.
func (s *swarmNode) info(ctx context.Context) swarm.Info {
	state, err := s.state()
	i := swarm.Info{LocalNodeState: state}
	if err != nil {
		i.Error = err.Error()
	}
	r, _ := s.current()
	if r == nil {
		return i
	}
	known := r.membership()
	i.NodeID, i.RemoteManagers = known.NodeID, known.Managers
	if host, _, err := net.SplitHostPort(known.AdvertiseAddr); err == nil {
		i.NodeAddr = host
	}
	p := r.managing()
	if p == nil {
		return i
	}
	i.ControlAvailable = true
	if err := p.raft.Status().Err; err != nil {
		i.Error = fmt.Sprintf("this manager's raft log can't be written (free some space in %s): %v", filepath.Join(s.dir, raftDir), err)
	} else if p.lostQuorum() {
		i.Error = p.noLeader().Error()
	}
	view := p.store.View()
	for n := range store.List[*api.Node](view) {
		i.Nodes++
		if n.Role == swarm.NodeRoleManager && n.RaftID != 0 {
			i.Managers++
		}
	}
	if i.Managers == 2 {
		i.Warnings = append(i.Warnings, twoManagers)
	}
	if c, err := p.control.SwarmInspect(ctx); err == nil {
		i.Cluster = &c.ClusterInfo
	}
	return i
}
