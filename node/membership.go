package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
)

const (
	// readTimeout bounds how long a read waits for a quorum.
	readTimeout = 2 * time.Second
	// writeTimeout bounds how long a write at a follower waits for a leader: for an
	// election, and then some.
	writeTimeout = 5 * time.Second
	// handOverTimeout bounds how long a manager that stops waits for another one
	// to take the lead.
	handOverTimeout = time.Second
	joinPause       = 100 * time.Millisecond
	joinPauseMax    = 3 * time.Second
	// refusalsTold is how often the leader must not find a manager at its address
	// until "swarm join" fails: once may be bad luck.
	refusalsTold = 2
	// leaderless is how long nobody leads until this manager asks the others
	// whether it is still one of them.
	leaderless = 3 * time.Second
)

// joining makes this manager a member if its log is empty, and waits until it
// knows all that the swarm knows.
func (p *managerPart) joining(ctx context.Context) error {
	pause, refusals := joinPause, 0
	for len(p.raft.Status().Members) == 0 {
		err := p.join(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil
		}
		p.refusal.Store(&err)
		if api.Is(err, api.Invalid) {
			if refusals++; refusals == refusalsTold {
				p.refused <- err
			}
		}
		p.log.Warn("this manager could not join the others yet; will try again", "err", err)
		changed := p.raft.Changed()
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
		pause = min(2*pause, joinPauseMax)
	}
	return p.catchUp(ctx)
}

// join asks the managers that the node knows, one after the other.
func (p *managerPart) join(ctx context.Context) error {
	err := error(api.Errorf(api.Invalid, "no manager of the swarm is known to this node at another address than its own, %s: name another address with --advertise-addr, or another manager", p.state.AdvertiseAddr))
	for _, addr := range p.peers() {
		if err = p.joinAt(ctx, addr); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return err
}

func (p *managerPart) joinAt(ctx context.Context, addr string) error {
	conn, err := rpc.DialManager(addr, p.creds)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	ctx, cancel := context.WithTimeout(ctx, 2*readTimeout)
	defer cancel()
	members, err := rpc.Join(ctx, conn, rpc.Member{RaftID: p.state.RaftID, NodeID: p.state.NodeID, Addr: p.state.AdvertiseAddr})
	if err != nil {
		return fmt.Errorf("manager at %s: %w", addr, err)
	}
	peers := map[uint64]string{}
	for _, m := range members {
		peers[m.RaftID] = m.Addr
	}
	p.mesh.SetPeers(peers)
	return nil
}

// catchUp waits until a quorum agrees that this manager knows the swarm.
func (p *managerPart) catchUp(ctx context.Context) error {
	for ctx.Err() == nil {
		if p.genesis != nil || p.forced {
			return nil // see found
		}
		if _, err := p.raft.ReadIndex(ctx); err == nil && store.Count[*api.Cluster](p.store.View()) > 0 {
			p.nowKnows()
			return nil
		}
		t := time.NewTimer(joinPause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	return nil
}

// watchMembership ends with errNoManager when the others have taken this manager
// out of the log.
func (p *managerPart) watchMembership(ctx context.Context) error {
	joined := false
	for {
		changed := p.raft.Changed()
		st := p.raft.Status()
		is := slices.ContainsFunc(st.Members, func(m raftnode.Member) bool { return m.ID == st.ID })
		if joined && !is {
			return errNoManager
		}
		joined = joined || is
		if st.Leader != 0 {
			p.informed.Store(nil)
		}
		wait := time.Hour
		if joined && st.Leader == 0 {
			wait = leaderless
		}
		t := time.NewTimer(wait)
		select {
		case <-changed:
		case conn := <-p.stranger:
			if _, out := p.ask(ctx, conn); joined && out {
				return errNoManager
			}
		case <-t.C:
			if p.askAll(ctx, st.Members) {
				return errNoManager
			}
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		t.Stop()
	}
}

// askAll asks the others while nobody leads here. It reports whether this manager is
// out, and notes who has a leader if it is in.
func (p *managerPart) askAll(ctx context.Context, members []raftnode.Member) (out bool) {
	var informed *raftnode.Member
	for _, m := range members {
		conn := p.mesh.Conn(m.ID)
		if conn == nil {
			continue
		}
		knows, out := p.ask(ctx, conn)
		if out {
			return true
		}
		if knows && informed == nil {
			informed = &m
		}
	}
	p.informed.Store(informed)
	return false
}

// ask reports whether a manager has a quorum behind it, and whether this one is not a
// member then.
func (p *managerPart) ask(ctx context.Context, conn *grpc.ClientConn) (knows, out bool) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	members, err := rpc.Members(ctx, conn)
	knows = err == nil && len(members) > 0
	return knows, knows && !slices.ContainsFunc(members, func(m rpc.Member) bool { return m.RaftID == p.state.RaftID })
}

// handOver lets another manager take the lead before this one stops.
func (p *managerPart) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	for {
		changed := p.raft.Changed()
		st := p.raft.Status()
		if st.Leader != st.ID || len(st.Voters) < 2 || !slices.ContainsFunc(st.Voters, func(id uint64) bool { return id != st.ID && p.mesh.Reachable(id) }) {
			return
		}
		if err := p.raft.TransferLeadership(ctx, 0); err != nil {
			return // the others will notice
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// followSettings has raft take over what the swarm's spec says of it.
func (p *managerPart) followSettings(ctx context.Context) error {
	for {
		view, w := p.store.Watch(store.KindCluster)
		err := p.settings(ctx, view, w)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

func (p *managerPart) settings(ctx context.Context, view *store.View, w *store.Watcher) error {
	for {
		for c := range store.List[*api.Cluster](view) {
			r := raftnode.Retention{SnapshotInterval: c.Spec.Raft.SnapshotInterval, SlowFollowerEntries: c.Spec.Raft.LogEntriesForSlowFollowers}
			if k := c.Spec.Raft.KeepOldSnapshots; k != nil {
				r.KeepOldSnapshots = *k
			}
			if err := p.raft.SetRetention(ctx, r); err != nil {
				return err
			}
		}
		if _, err := w.Next(ctx); err != nil {
			return err
		}
		view = p.store.View()
	}
}
