package sim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// digestEvery is after how many entries the whole states of managers are
// compared.
const digestEvery = 64

type sum [sha256.Size]byte

// checks watches what must hold at all times.
type checks struct {
	failf func(format string, args ...any)

	mu       sync.Mutex
	entries  map[uint64]entry
	digests  map[uint64]sum
	frontier uint64            // the newest entry that was applied anywhere
	loops    map[sum]loopTerm  // what leaders' loops proposed
	newest   loopTerm          // of whom the last entry of a loop was
	sessions map[string]string // of agents, by node
	// registered and ended say at which entry a session was written, and a task
	// was not wanted any more.
	registered, ended map[string]uint64
}

// entry is what managers found at an index.
type entry struct {
	data   sum
	result string
	by     string
}

// loopTerm says in which term of a host's leadership a loop wrote; 0: in several.
type loopTerm struct {
	term uint64
	host string
}

func newChecks(failf func(string, ...any)) *checks {
	return &checks{
		failf: failf, entries: map[uint64]entry{}, digests: map[uint64]sum{}, loops: map[sum]loopTerm{}, sessions: map[string]string{},
		registered: map[string]uint64{}, ended: map[string]uint64{},
	}
}

// applier is a manager's store that is checked: managers apply the same entries
// with the same results, and have the same state at the same index.
type applier struct {
	*store.Store
	checks *checks
	on     *host
}

// Apply takes an entry.
func (a *applier) Apply(index uint64, data []byte) (result, fatal error) {
	a.on.c.net.goOn(a.on.addr)
	result, fatal = a.Store.Apply(index, data)
	a.checks.applied(index, entry{sha256.Sum256(data), fmt.Sprint(result), a.on.id}, result == nil)
	if index%digestEvery == 0 {
		a.digest()
	}
	return result, fatal
}

// Restore takes a snapshot.
func (a *applier) Restore(r io.Reader) error {
	err := a.Store.Restore(r)
	if err == nil {
		a.digest()
	}
	return err
}

func (a *applier) digest() {
	view := a.View()
	s, err := digest(view)
	if err != nil {
		a.checks.failf("%s: snapshot at %d: %v", a.on.id, view.Index(), err)
		return
	}
	a.checks.mu.Lock()
	defer a.checks.mu.Unlock()
	if other, ok := a.checks.digests[view.Index()]; ok && other != s {
		a.checks.failf("%s: its state at entry %d is not what another manager has", a.on.id, view.Index())
	}
	a.checks.digests[view.Index()] = s
}

func digest(view *store.View) (s sum, err error) {
	h := sha256.New()
	if err := view.Snapshot(h); err != nil {
		return s, err
	}
	return sum(h.Sum(nil)), nil
}

func (k *checks) applied(index uint64, e entry, taken bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if other, ok := k.entries[index]; ok && (other.data != e.data || other.result != e.result) {
		k.failf("entry %d: %s has %x (%s), %s has %x (%s)", index, other.by, other.data[:4], other.result, e.by, e.data[:4], e.result)
	}
	k.entries[index] = e
	if index <= k.frontier {
		return
	}
	k.frontier = index
	if by := k.loops[e.data]; taken && by.term != 0 {
		if by.term < k.newest.term {
			k.failf("entry %d was written by a loop of %s, which led in term %d, after loops of %s had written in term %d",
				index, by.host, by.term, k.newest.host, k.newest.term)
		}
		k.newest = by
	}
}

// loopKey marks the contexts of a leader's loops.
type loopKey struct{}

func asLoop(ctx context.Context) context.Context { return context.WithValue(ctx, loopKey{}, true) }

// proposer is a manager's log; it notes what the leader's loops propose.
type proposer struct {
	m      *manager
	checks *checks
}

// Propose puts an entry in the log.
func (p *proposer) Propose(ctx context.Context, data []byte) (uint64, error) {
	if ctx.Value(loopKey{}) != nil {
		p.checks.proposed(p.m, sha256.Sum256(data))
		if spring := p.m.trap.Swap(nil); spring != nil {
			(*spring)()
		}
	}
	return p.m.raft.Propose(ctx, data)
}

func (k *checks) proposed(m *manager, s sum) {
	st := m.raft.Status()
	k.mu.Lock()
	defer k.mu.Unlock()
	if st.IsLeader {
		m.led = st.Term
	}
	by := loopTerm{m.led, m.host.id}
	if other, ok := k.loops[s]; ok && other != by {
		by.term = 0
	}
	k.loops[s] = by
}

// follow watches a manager's replica until ctx ends.
func (k *checks) follow(ctx context.Context, m *manager) error {
	for ctx.Err() == nil {
		view, w := m.store.Watch(store.KindTask, store.KindNode, store.KindService, store.KindNetwork)
		h := newHoldings()
		f := follower{k: k, host: m.host.id, slots: map[slot]map[string]bool{}, holdings: h, rules: newRules(h), pace: newPace(h, m.c.clocksAgree)}
		for t := range store.List[*api.Task](view) {
			f.note(nil, t)
			for _, follow := range []func(store.Change){f.rules.change, f.pace.change} {
				follow(store.Change{Kind: store.KindTask, ID: t.ID, New: t})
			}
		}
		f.holdings.load(view)
		for n := range store.List[*api.Node](view) {
			for _, follow := range []func(store.Change){f.rules.change, f.pace.change} {
				follow(store.Change{Kind: store.KindNode, ID: n.ID, New: n})
			}
		}
		f.look(view.Index())
		var err error
		for err == nil {
			var changes []store.Change
			changes, err = w.Next(ctx)
			for i, c := range changes {
				k.marks(c)
				f.holdings.change(c)
				if c.Kind == store.KindTask || c.Kind == store.KindNode {
					f.rules.change(c)
					f.pace.change(c)
				}
				was, _ := c.Old.(*api.Task)
				is, _ := c.New.(*api.Task)
				f.note(was, is)
				if i+1 == len(changes) || changes[i+1].Index != c.Index {
					f.look(c.Index)
				}
			}
		}
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return nil
		}
	}
	return nil
}

type slot struct {
	service string
	number  int
	node    string // of a global service
}

func slotOf(t *api.Task) slot {
	if t.Spec.Global {
		return slot{service: t.ServiceID, node: t.NodeID}
	}
	return slot{service: t.ServiceID, number: t.Slot}
}

// follower is what was seen of a replica's tasks.
type follower struct {
	k        *checks
	host     string
	slots    map[slot]map[string]bool // the live tasks
	touched  []slot
	holdings *holdings
	rules    *rules
	pace     *pace
}

// live reports whether a task is the one that its slot is to have.
func live(t *api.Task) bool {
	return t != nil && t.DesiredState == swarm.TaskStateRunning && !api.Final(t.Status.State) && !strings.HasPrefix(t.Spec.ServiceName, startFirst)
}

// startFirst begins the names of services whose slots have two tasks for a while.
const startFirst = "sf-"

func (f *follower) note(was, is *api.Task) {
	if was != nil && is != nil {
		if api.Rank(is.Status.State) < api.Rank(was.Status.State) || api.Final(was.Status.State) && is.Status.State != was.Status.State {
			f.k.failf("%s: task %s went from %s back to %s", f.host, is.ID, was.Status.State, is.Status.State)
		}
		if api.Rank(is.DesiredState) < api.Rank(was.DesiredState) {
			f.k.failf("%s: what is desired of task %s went from %s back to %s", f.host, is.ID, was.DesiredState, is.DesiredState)
		}
		if was.NodeID != "" && is.NodeID != was.NodeID {
			f.k.failf("%s: task %s moved from %s to %s", f.host, is.ID, was.NodeID, is.NodeID)
		}
	}
	if live(was) {
		s := slotOf(was)
		delete(f.slots[s], was.ID)
	}
	if live(is) {
		s := slotOf(is)
		if f.slots[s] == nil {
			f.slots[s] = map[string]bool{}
		}
		f.slots[s][is.ID] = true
		f.touched = append(f.touched, s)
	}
}

// look checks the slots that changed at an index.
func (f *follower) look(index uint64) {
	for _, s := range f.touched {
		if len(f.slots[s]) > 1 {
			f.k.failf("%s: at entry %d slot %d%s of service %s has %d live tasks: %v", f.host, index, s.number, s.node, s.service, len(f.slots[s]), f.slots[s])
		}
	}
	f.touched = f.touched[:0]
	for _, look := range []func() string{f.holdings.look, f.rules.look, f.pace.look} {
		if what := look(); what != "" {
			f.k.failf("%s: at entry %d %s", f.host, index, what)
		}
	}
}

// opened notes that an agent has a session.
func (k *checks) opened(node, session string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sessions[node] = session
}

// told checks what an agent is told: only its newest session may speak to it, and
// it begins with what the managers had agreed on when it was opened.
func (k *checks) told(node, session string, m *swarmpb.AssignmentsMessage, written bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.sessions[node]; now != session {
		k.failf("the agent of %s is told assignments by session %s; its session is %s", node, session, now)
	}
	began := k.registered[session]
	if began == 0 && !written {
		k.failf("the agent of %s is told assignments by session %s, which is not written", node, session)
	}
	if m.GetType() != swarmpb.AssignmentsMessage_COMPLETE || began == 0 {
		return
	}
	for _, a := range m.GetChanges() {
		t := a.GetAssignment().GetTask()
		if t == nil || api.ToldToEnd(t.API().DesiredState) {
			continue
		}
		if ended := k.ended[t.GetId()]; ended != 0 && ended < began {
			k.failf("session %s of %s, which began at entry %d, wants task %s to run, which was ended at entry %d", session, node, began, t.GetId(), ended)
		}
	}
}

// marks notes from when on a session counts, and a task is not wanted any more.
func (k *checks) marks(c store.Change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n, ok := c.New.(*api.Node); ok && n.Session.ID != "" && k.registered[n.Session.ID] == 0 {
		k.registered[n.Session.ID] = c.Index
	}
	if c.Kind != store.KindTask || k.ended[c.ID] != 0 {
		return
	}
	if t, ok := c.New.(*api.Task); !ok || api.ToldToEnd(t.DesiredState) {
		k.ended[c.ID] = c.Index
	}
}
