package roles

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/store"
)

// Raft is the log's members. *raftnode.Node implements it.
type Raft interface {
	Status() raftnode.Status
	Changed() <-chan struct{}
	AddLearner(ctx context.Context, m raftnode.Member) error
	Promote(ctx context.Context, m raftnode.Member) error
	Remove(ctx context.Context, id uint64) error
	CaughtUp(ctx context.Context, id uint64) (bool, error)
	TransferLeadership(ctx context.Context, id uint64) error
}

var _ Raft = (*raftnode.Node)(nil)

// Config is what a Keeper needs; all is required.
type Config struct {
	Store *store.Store
	Raft  Raft
	// Hello asks the manager at an address (host:port) for its node's id.
	Hello func(ctx context.Context, addr string) (nodeID string, err error)
	Log   *slog.Logger
}

// Keeper keeps members and roles in step. Safe for concurrent use.
type Keeper struct{ cfg Config }

// New returns a keeper. It has no effects until it is called.
func New(cfg Config) *Keeper { return &Keeper{cfg} }

const (
	helloTimeout = 3 * time.Second
	joinTimeout  = 10 * time.Second
	stepTimeout  = 5 * time.Second
	// soon is when a learner is looked at again; later, when something that was
	// refused is tried again.
	soon  = 20 * time.Millisecond
	later = time.Second
)

// Join makes a manager a member of the log, without a vote: that comes from Run.
// On the leader only. It is no error if it is one already.
func (k *Keeper) Join(ctx context.Context, nodeID string, m raftnode.Member) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	if err := k.mayJoin(k.cfg.Store.View(), nodeID, m); err != nil {
		return err
	}
	if err := k.reach(ctx, nodeID, m.Address); err != nil {
		return err
	}
	// First the node, so that no member is without one.
	_, err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		if err := k.mayJoin(tx, nodeID, m); err != nil {
			return err
		}
		n := *store.Get[*api.Node](tx, nodeID)
		if n.RaftID == m.ID && n.ManagerAddr == m.Address {
			return nil
		}
		n.RaftID, n.ManagerAddr = m.ID, m.Address
		return store.Put(tx, &n)
	})
	if err != nil {
		return err
	}
	for {
		if slices.ContainsFunc(k.cfg.Raft.Status().Members, func(o raftnode.Member) bool { return o.ID == m.ID && o.Address == m.Address }) {
			return nil
		}
		err := k.cfg.Raft.AddLearner(ctx, m)
		if err == nil || !api.Is(err, api.Unavailable) || !k.cfg.Raft.Status().IsLeader {
			return err
		}
		// Another change of members is under way.
		if !sleep(ctx, soon) {
			return err
		}
	}
}

func (k *Keeper) mayJoin(r store.Reader, nodeID string, m raftnode.Member) error {
	n := store.Get[*api.Node](r, nodeID)
	switch {
	case m.ID == 0 || m.Address == "":
		return api.Errorf(api.Invalid, "a manager that joins must say its raft number and its address")
	case n == nil:
		return api.Errorf(api.NotFound, "node %s is not part of the swarm: it was removed", nodeID)
	case n.Role != swarm.NodeRoleManager || !wanted(n):
		return api.Errorf(api.PermissionDenied, "node %s is not a manager of the swarm: promote it first", nodeID)
	}
	for o := range store.List[*api.Node](r) {
		if o.ID != nodeID && o.RaftID == m.ID {
			return api.Errorf(api.Conflict, "raft number %x is node %s's", m.ID, o.ID)
		}
	}
	return nil
}

// reach checks that a manager can be reached where it says.
func (k *Keeper) reach(ctx context.Context, nodeID, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	got, err := k.cfg.Hello(ctx, addr)
	switch {
	case err != nil:
		return api.Errorf(api.Invalid, "the leader could not connect to prospective new cluster member using its advertised address %s: %w: is a firewall between them? Name another address with --advertise-addr", addr, err)
	case got != nodeID:
		return api.Errorf(api.Invalid, "at %s the leader finds node %s instead of %s: name the new manager's own address with --advertise-addr", addr, got, nodeID)
	}
	return nil
}

// Run keeps members and roles in step for one leadership epoch. It returns when
// ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		err := k.run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (k *Keeper) run(ctx context.Context) error {
	_, w := k.cfg.Store.Watch(store.KindNode)
	defer w.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nodes, failed := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		for {
			if _, err := w.Next(ctx); err != nil {
				failed <- err
				return
			}
			select {
			case nodes <- struct{}{}:
			default:
			}
		}
	}()
	defer func() { cancel(); <-failed }() //nolint:errcheck // its end is what counts
	for {
		members := k.cfg.Raft.Changed()
		wait, err := k.round(ctx)
		if err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-nodes:
		case <-members:
		case <-t.C:
		case err := <-failed:
			failed <- err
			t.Stop()
			return err
		}
		t.Stop()
	}
}

// round carries out one plan and returns when to look again, should nothing
// happen before. Only a failed write is an error.
func (k *Keeper) round(ctx context.Context) (time.Duration, error) {
	st := k.cfg.Raft.Status() // before the view: see plan
	nodes := slices.Collect(store.List[*api.Node](k.cfg.Store.View()))
	wait := time.Hour
	for _, a := range plan(nodes, &st) {
		err := k.do(ctx, a, &st)
		switch {
		case errors.Is(err, errNotYet):
			wait = min(wait, soon)
		case err != nil && (a.verb == appoint || a.verb == dismiss):
			return 0, err
		case err != nil && !k.cfg.Raft.Status().IsLeader: // the next leader does it
		case err != nil && ctx.Err() == nil:
			k.cfg.Log.Warn("the managers can't be changed now; will try again", "change", a.verb, "node", a.node, "err", err)
			wait = min(wait, later)
		case a.verb == handOver:
			wait = min(wait, later)
		}
	}
	return wait, nil
}

var errNotYet = errors.New("not yet")

func (k *Keeper) do(ctx context.Context, a action, st *raftnode.Status) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	switch a.verb {
	case appoint:
		return k.write(ctx, a.node, func(n *api.Node) bool {
			ok := wanted(n) && n.Role != swarm.NodeRoleManager
			n.Role, n.RaftID, n.ManagerAddr = swarm.NodeRoleManager, 0, ""
			return ok
		})
	case dismiss:
		return k.write(ctx, a.node, func(n *api.Node) bool {
			ok := !wanted(n) && n.Role == swarm.NodeRoleManager
			n.Role, n.RaftID, n.ManagerAddr = swarm.NodeRoleWorker, 0, ""
			return ok
		})
	case vote:
		if ok, err := k.cfg.Raft.CaughtUp(ctx, a.member); err != nil {
			return err
		} else if !ok {
			return errNotYet
		}
		i := slices.IndexFunc(st.Members, func(m raftnode.Member) bool { return m.ID == a.member })
		k.cfg.Log.Info("a manager has caught up and gets a vote", "node", a.node, "address", st.Members[i].Address)
		return k.cfg.Raft.Promote(ctx, st.Members[i])
	case remove:
		k.cfg.Log.Info("a manager is taken out of the log", "node", a.node, "raft", a.member, "why", a.why)
		return k.cfg.Raft.Remove(ctx, a.member)
	case handOver:
		k.cfg.Log.Info("another manager shall lead", "why", a.why)
		return k.cfg.Raft.TransferLeadership(ctx, 0)
	}
	return nil
}

// write changes a node, if change says that there is something to change.
func (k *Keeper) write(ctx context.Context, id string, change func(*api.Node) bool) error {
	_, err := k.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Node](tx, id)
		if old == nil {
			return nil
		}
		n := *old
		if !change(&n) {
			return nil
		}
		return store.Put(tx, &n)
	})
	return err
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
