package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// defaultHistory is how many tasks a slot keeps when the swarm does not say.
const defaultHistory = 5

const (
	// maxServices bounds how many services are planned in one transaction, and
	// maxChanges how much is written for them.
	maxServices = 32
	maxChanges  = 4000
	// roomDelay is for how long room that comes free is gathered before services are
	// balanced into it: a plan looks at all their tasks.
	roomDelay = 5 * time.Second
	// restFactor is for how many times as long as it planned the loop rests from
	// news that can wait, and maxRest for how long at most.
	restFactor = 3
	maxRest    = time.Second / 2
)

// Loop keeps the tasks of all services as Plan has them.
type Loop struct {
	Store *store.Store
	Log   *slog.Logger
	// Fits says why a node has no place for a task, "" if it has. Services that
	// rebalance ask it. May be nil: all nodes have.
	Fits func(r store.Reader, t *api.Task, node string) string
}

// Run plans all services, then those that something has changed for. It blocks
// until ctx ends or the store can't be written to.
func (l *Loop) Run(ctx context.Context) error {
	for {
		err := l.follow(ctx)
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
		l.Log.Info("the orchestrator fell behind and plans all services anew")
	}
}

// session is the loop from one snapshot on.
type session struct {
	*Loop
	agenda *agenda
	nodes  map[string]*api.Node
	evict  map[string]string  // tasks that their nodes have no room for, and why
	shrunk map[string]bool    // nodes whose resources have changed
	quiet  map[string]uint64  // services that were last found to be as they should, at this version
	only   map[string][]place // of services that are being planned, where it is not all of them
	waits  map[string]bool    // services whose plans wait for tasks that can't be placed
	// refused are services that would be more even if these nodes had room for them.
	refused map[string]map[string]bool
	rest    time.Time // until when what can wait is gathered, see soon
}

func (l *Loop) follow(ctx context.Context) error {
	view, w := l.Store.Watch(store.KindService, store.KindTask, store.KindNode, store.KindCluster)
	defer w.Close()
	s := &session{
		Loop: l, agenda: newAgenda(), nodes: map[string]*api.Node{},
		evict: map[string]string{}, shrunk: map[string]bool{}, waits: map[string]bool{}, quiet: map[string]uint64{},
		refused: map[string]map[string]bool{},
	}
	for n := range store.List[*api.Node](view) {
		s.nodes[n.ID] = n
	}
	s.all(view)
	s.enforce(view, "")
	for {
		began := time.Now()
		for batch := s.agenda.take(maxServices); len(batch) > 0; batch = s.agenda.take(maxServices) {
			s.only = s.agenda.only(batch)
			if err := s.plan(ctx, batch, maxChanges); err != nil {
				return err
			}
		}
		ended := time.Now()
		s.rest = ended.Add(min(restFactor*ended.Sub(began), maxRest))
		changes, err := s.wait(ctx, w)
		if err != nil {
			return err
		}
		for i := range changes {
			s.note(&changes[i])
		}
	}
}

// all has every service planned, also those that only tasks are left of.
func (s *session) all(view *store.View) {
	for o := range store.List[*api.Service](view) {
		s.agenda.add(o.ID)
	}
	for t := range store.List[*api.Task](view) {
		s.agenda.add(t.ServiceID)
	}
}

// wait returns when something has changed, or a service's time has come.
func (s *session) wait(ctx context.Context, w *store.Watcher) ([]store.Change, error) {
	until := ctx
	if next, ok := s.agenda.next(); ok {
		var cancel context.CancelFunc
		until, cancel = context.WithDeadline(ctx, next)
		defer cancel()
	}
	changes, err := w.Next(until)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = nil
	}
	s.agenda.due(time.Now())
	return changes, err
}

// note adds the services that a change concerns.
func (s *session) note(c *store.Change) {
	switch c.Kind {
	case store.KindService:
		s.agenda.add(c.ID)
	case store.KindTask:
		was, _ := c.Old.(*api.Task)
		is, _ := c.New.(*api.Task)
		s.noteTask(was, is)
		s.noteRoom(was, is)
	case store.KindNode:
		was, _ := c.Old.(*api.Node)
		is, _ := c.New.(*api.Node)
		s.noteNode(c.ID, was, is)
	case store.KindCluster:
		was, _ := c.Old.(*api.Cluster)
		is, _ := c.New.(*api.Cluster)
		if was != nil && is != nil && history(was) != history(is) {
			s.all(s.Store.View())
		}
	}
}

func (s *session) noteTask(was, is *api.Task) {
	switch {
	case is == nil:
		delete(s.evict, was.ID)
		s.touch(was)
	case was != nil && goesWell(was, is) && s.settled(is):
	case was == nil || goesWell(was, is):
		s.soon(is)
	case s.matters(was, is):
		s.touch(is)
	}
}

// noteRoom has services balanced again that a node had no room for, when what has room
// there changes: tasks of other services, of which their plans hear nothing.
func (s *session) noteRoom(was, is *api.Task) {
	from, to := holds(was), holds(is)
	if from == to {
		return
	}
	for id, nodes := range s.refused {
		if nodes[from] || nodes[to] {
			s.agenda.at(id, time.Now().Add(roomDelay))
		}
	}
}

// holds returns the node that a task has room on; "" if there is none.
func holds(t *api.Task) string {
	if t == nil || !mayHaveRun(t) || api.Final(t.Status.State) {
		return ""
	}
	return t.NodeID
}

// goesWell reports whether a task does what it should: it runs.
func goesWell(was, is *api.Task) bool {
	return is.Status.State == swarm.TaskStateRunning && was.Status.State != is.Status.State && was.DesiredState == is.DesiredState && was.Evicted == is.Evicted
}

// settled reports whether there is nothing to plan for a task that runs now: its
// service needed nothing, and nobody else was ever in its slot. So the first
// tasks of a service come up without a plan for each.
func (s *session) settled(t *api.Task) bool {
	version := s.quiet[t.ServiceID]
	if version == 0 || t.DesiredState != swarm.TaskStateRunning || t.JobIteration != nil || t.Spec.Global || t.Evicted != "" {
		return false
	}
	view := s.Store.View()
	if o := store.Get[*api.Service](view, t.ServiceID); o == nil || o.Version.Index != version {
		return false
	}
	if s.shrunk[t.NodeID] || s.evict[t.ID] != "" {
		return false
	}
	for other := range store.List[*api.Task](view, store.BySlot(t.ServiceID, t.Slot)) {
		if other.ID != t.ID {
			return false
		}
	}
	return true
}

// soon adds a task of which nothing but good news came. When a million tasks
// come up, to plan their services with each would take the processor that they
// need: so the loop rests from such news for as long as planning took, a few
// times over. An update under way does not wait.
func (s *session) soon(t *api.Task) {
	if time.Now().Before(s.rest) {
		o := store.Get[*api.Service](s.Store.View(), t.ServiceID)
		if o == nil || o.UpdateStatus == nil || !underWay(o.UpdateStatus.State) {
			s.agenda.at(t.ServiceID, s.rest)
			return
		}
	}
	s.touch(t)
}

// matters reports whether plans look at what has changed in a task. Most of a
// task's steps do not matter, and there are many.
func (s *session) matters(was, is *api.Task) bool {
	running := api.Rank(swarm.TaskStateRunning)
	if was.Evicted != is.Evicted || was.DesiredState != is.DesiredState || was.Status.State != is.Status.State && api.Rank(is.Status.State) >= running {
		return true
	}
	if s.waits[is.ServiceID] && is.Status.Err != "" && was.Status.Err == "" {
		return true
	}
	if was.NodeID == is.NodeID {
		return false
	}
	if s.shrunk[is.NodeID] && reserves(is) {
		s.enforce(s.Store.View(), is.NodeID)
	}
	n := s.nodes[is.NodeID] // it may have gone while the task was put there
	return n == nil || n.Status.State == swarm.NodeStateDown || n.Spec.Availability != swarm.NodeAvailabilityActive
}

func (s *session) noteNode(id string, was, is *api.Node) {
	if is == nil {
		delete(s.nodes, id)
		delete(s.shrunk, id)
	} else {
		s.nodes[id] = is
		if was != nil && sameForPlans(was, is) {
			return
		}
	}
	view := s.Store.View()
	known := was != nil && (was.Description.Resources.NanoCPUs != 0 || was.Description.Resources.MemoryBytes != 0) // a new node says it with its first session
	if known && is != nil && !reflect.DeepEqual(was.Description.Resources, is.Description.Resources) {
		s.shrunk[id] = true
		s.enforce(view, id)
	}
	for t := range store.List[*api.Task](view, store.ByNode(id)) {
		s.agenda.add(t.ServiceID)
	}
	for o := range store.List[*api.Service](view) {
		if o.Spec.Mode.Global != nil || o.Spec.Mode.GlobalJob != nil || o.Spec.Labels[api.RebalanceLabel] != "" {
			s.agenda.add(o.ID)
		}
	}
}

// sameForPlans reports whether a node changed in nothing that plans look at.
func sameForPlans(a, b *api.Node) bool {
	return a.Spec.Availability == b.Spec.Availability && a.Status.State == b.Status.State && a.Status.Addr == b.Status.Addr &&
		a.Role == b.Role && maps.Equal(a.Spec.Labels, b.Spec.Labels) && maps.Equal(a.Description.Engine.Labels, b.Description.Engine.Labels) &&
		a.Description.Hostname == b.Description.Hostname && a.Description.Platform == b.Description.Platform &&
		reflect.DeepEqual(a.Description.Resources, b.Description.Resources) &&
		reflect.DeepEqual(a.Description.Engine.Plugins, b.Description.Engine.Plugins)
}

// plan plans services in one transaction. Those that there is no room for come
// again; if even one has too much to write, it is done in smaller steps.
func (s *session) plan(ctx context.Context, services []string, limit int) error {
	done := map[string]outcome{}
	now := s.Store.Now() // before the transaction, so that tasks are not older than their plan
	_, err := s.Store.Update(ctx, func(tx *store.Tx) error {
		clear(done)
		left := limit
		for _, id := range services {
			if left <= 0 {
				done[id] = outcome{again: time.Now()}
				continue
			}
			in := s.input(tx, id, now)
			in.MaxChanges = left
			out, local := s.local(tx, &in, s.only[id])
			if !local {
				in.Tasks = slices.AppendSeq(in.Tasks, store.List[*api.Task](tx, store.ByService(id)))
				out = Plan(in)
			}
			if behind(tx, &in, &out) {
				continue
			}
			left -= out.changes()
			if err := write(tx, &in, &out); err != nil {
				return err
			}
			done[id] = result(&in, &out, local)
		}
		return nil
	})
	switch {
	case api.Is(err, api.ResourceExhausted) && len(services) > 1:
		for _, id := range services {
			if err := s.plan(ctx, []string{id}, limit); err != nil {
				return err
			}
		}
		return nil
	case api.Is(err, api.ResourceExhausted) && limit > 1:
		return s.plan(ctx, services, limit/2)
	case err != nil:
		return fmt.Errorf("plan services: %w", err)
	}
	for id, o := range done {
		s.remember(id, o)
	}
	return nil
}

// outcome is what is remembered of a plan that was written.
type outcome struct {
	again        time.Time
	local, waits bool
	refused      []string
	quiet        uint64 // the service's version; 0: it is not
}

func result(in *Input, out *Output, local bool) outcome {
	o := outcome{local: local, waits: out.Waits, refused: out.Refused}
	if !out.Again.IsZero() {
		o.again = time.Now().Add(out.Again.Sub(in.Now)) // timers do not follow a clock that is set
	}
	if out.Quiet {
		o.quiet = in.Service.Version.Index
	}
	return o
}

func (s *session) remember(id string, o outcome) {
	if !o.again.IsZero() {
		s.agenda.at(id, o.again)
	}
	if o.local {
		return
	}
	delete(s.waits, id)
	delete(s.quiet, id)
	delete(s.refused, id)
	for _, node := range o.refused {
		if s.refused[id] == nil {
			s.refused[id] = map[string]bool{}
		}
		s.refused[id][node] = true
	}
	if o.waits {
		s.waits[id] = true
	}
	if o.quiet != 0 {
		s.quiet[id] = o.quiet
	}
}

func (s *session) input(tx *store.Tx, service string, now time.Time) Input {
	in := Input{
		Service: store.Get[*api.Service](tx, service), Nodes: s.nodes, Now: now, NewID: api.NewID, History: defaultHistory,
		Evict: func(id string) string { return s.evict[id] },
	}
	if s.Fits != nil {
		in.Fits = func(t *api.Task, node string) bool { return s.Fits(s.Store.View(), t, node) == "" }
	}
	for c := range store.List[*api.Cluster](tx) {
		in.History = history(c)
	}
	return in
}

func history(c *api.Cluster) int64 {
	if h := c.Spec.Orchestration.TaskHistoryRetentionLimit; h != nil {
		return *h
	}
	return defaultHistory
}
