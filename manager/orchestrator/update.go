package orchestrator

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// defaultMonitor is Docker's: how long an updated task is watched for failure.
const defaultMonitor = 5 * time.Second

// updater is the part of a plan that brings a service's tasks to its newest
// spec, a few at a time.
type updater struct {
	*plan
	config   swarm.UpdateConfig
	rollback bool
	started  time.Time
	stale    []*slot // whose live task is of another spec
	fresh    []*slot // whose live task is of the newest
	busy     int     // slots that count against the parallelism
	spent    int     // slots that get no other task of the newest spec
}

// underWay reports whether an update in this state is going on.
func underWay(s swarm.UpdateState) bool {
	return s == swarm.UpdateStateUpdating || s == swarm.UpdateStateRollbackStarted
}

// update goes on with the service's update, or begins one if tasks are stale.
func (p *plan) update() {
	st := p.Service.UpdateStatus
	if st != nil && (st.State == swarm.UpdateStatePaused || st.State == swarm.UpdateStateRollbackPaused) {
		return
	}
	u := newUpdater(p)
	if st == nil || !underWay(st.State) {
		if len(u.stale) == 0 {
			return
		}
		u.started = p.sequel(p.Tasks)
		p.started = u.started
		u.status(swarm.UpdateStateUpdating, "update in progress", false)
	} else if failed := u.failed(); failed != "" {
		u.fail(failed)
		return
	}
	u.advance()
}

func newUpdater(p *plan) *updater {
	st := p.Service.UpdateStatus
	u := &updater{plan: p, rollback: st != nil && st.State == swarm.UpdateStateRollbackStarted}
	u.fresh = make([]*slot, 0, len(p.slots))
	u.config = updateConfig(&p.Service.Spec, u.rollback)
	if st != nil && st.StartedAt != nil {
		u.started = *st.StartedAt
	}
	for _, s := range p.slots {
		switch t := p.live(s); {
		case s.created && len(s.tasks) > 0:
			u.busy++
		case t == nil:
		case p.spent(s, t):
			u.spent++
		case p.stale(t):
			u.stale = append(u.stale, s)
		default:
			u.fresh = append(u.fresh, s)
		}
	}
	// Those that do not run are no loss.
	slices.SortStableFunc(u.stale, func(a, b *slot) int {
		return cmp.Compare(btoi(p.running(p.live(a))), btoi(p.running(p.live(b))))
	})
	return u
}

// spent reports whether the slot's task of the newest spec has ended, the restart policy
// allows no other, and one of an older spec still runs, as start-first has it. That one
// stays: an update that tried again would do what the policy forbids, and without a pause.
func (p *plan) spent(s *slot, live *api.Task) bool {
	return live != nil && p.stale(live) && p.finished(s) && byItself(s.tasks[0])
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func updateConfig(s *swarm.ServiceSpec, rollback bool) swarm.UpdateConfig {
	c := s.UpdateConfig
	if rollback {
		c = s.RollbackConfig
	}
	u := swarm.UpdateConfig{Parallelism: 1}
	if c != nil {
		u = *c
	}
	if u.Monitor == 0 {
		u.Monitor = defaultMonitor
	}
	if u.FailureAction == "" {
		u.FailureAction = swarm.UpdateFailureActionPause
	}
	if u.Order == "" {
		u.Order = swarm.UpdateOrderStopFirst
	}
	return u
}

// replaced reports whether the slot had tasks of another spec: it was not made
// by scaling up.
func (p *plan) replaced(s *slot) bool { return slices.ContainsFunc(s.tasks, p.stale) }

// since is when the task came to its present state, as far as the manager's
// clock can tell: the node's own may be off.
func since(t *api.Task) time.Time { return t.Since() }

// failed returns the id of a task whose failure, with others, is more than the
// service allows; "" if all is well. A slot's failures count once, and only
// those of tasks that did not outlive the time of monitoring; all, while an
// update waits for its canaries to be promoted.
func (u *updater) failed() string {
	if u.config.FailureAction == swarm.UpdateFailureActionContinue {
		return ""
	}
	failures, first := 0, ""
	for _, s := range u.slots {
		if t := u.failure(s); t != nil {
			failures++
			if first == "" {
				first = t.ID
			}
		}
	}
	if total := len(u.stale) + len(u.fresh) + u.busy + u.spent; float32(failures) <= u.config.MaxFailureRatio*float32(total) {
		return ""
	}
	return first
}

// failure returns a task of the slot that counts as a failure of the update.
func (u *updater) failure(s *slot) *api.Task {
	for _, t := range s.tasks {
		if t.CreatedAt.Before(u.started) || u.plan.stale(t) ||
			t.Status.State != swarm.TaskStateFailed && t.Status.State != swarm.TaskStateRejected {
			continue
		}
		if t.Ran > u.config.Monitor && !u.canaries() {
			continue
		}
		return t
	}
	return nil
}

// fail does what the service asks for when an update goes wrong.
func (u *updater) fail(task string) {
	why := "due to failure or early termination of task " + task
	switch {
	case u.rollback:
		u.status(swarm.UpdateStateRollbackPaused, "rollback paused "+why, false)
	case u.config.FailureAction == swarm.UpdateFailureActionRollback && u.Service.PreviousSpec != nil:
		s := u.Service.Rollback()
		s.SpecSince = u.Now
		started := u.sequel(u.Tasks)
		s.UpdateStatus = &swarm.UpdateStatus{
			State: swarm.UpdateStateRollbackStarted, StartedAt: &started, Message: "update rolled back " + why,
		}
		u.out.Update = s
	default:
		u.status(swarm.UpdateStatePaused, "update paused "+why, false)
	}
}

func (u *updater) status(state swarm.UpdateState, message string, done bool) {
	s := *u.Service
	s.UpdateStatus = &swarm.UpdateStatus{State: state, Message: message, StartedAt: new(u.started)}
	if done {
		s.UpdateStatus.CompletedAt = new(u.Now)
	}
	u.out.Update = &s
}

// advance updates as many slots as may be under way at once, and completes the
// update when all are done and were watched long enough.
func (u *updater) advance() {
	var settled time.Time
	for _, s := range u.fresh {
		if late, moving := u.moving(s); moving {
			u.busy++
			u.again(late)
			continue
		}
		if u.live(s).CreatedAt.Before(u.started) || !u.replaced(s) || u.roomless(s) {
			continue
		}
		at, done := u.reached(s)
		if !done {
			u.busy++
			u.out.Waits = true // there may be no room for it
			continue
		}
		if end := at.Add(u.config.Delay); len(u.stale) > 0 && u.waits(end, u.config.Delay) {
			u.busy++
			u.again(end)
		}
		if end := at.Add(u.config.Monitor); u.waits(end, u.config.Monitor) && end.After(settled) {
			settled = end
		}
	}
	room := len(u.stale)
	if most := u.config.Parallelism; most > 0 {
		room = min(room, max(0, int(min(most, math.MaxInt32))-u.busy))
	}
	if waits := u.canaries(); waits && len(u.stale) > 0 {
		more, up := u.canaryRoom()
		if up && u.out.Update == nil {
			u.await()
			return
		}
		room = min(room, more)
	} else if st := u.Service.UpdateStatus; st != nil && !u.rollback && u.out.Update == nil && st.State == swarm.UpdateStateUpdating {
		u.say("update in progress") // and not the canaries' message
	}
	for _, s := range u.stale[:room] {
		if u.full() {
			return
		}
		u.replace(s)
	}
	switch {
	case len(u.stale) > 0 || u.busy > 0 || u.out.Update != nil:
	case !settled.IsZero():
		u.again(settled)
	case u.rollback:
		u.status(swarm.UpdateStateRollbackCompleted, "rollback completed", true)
	default:
		u.status(swarm.UpdateStateCompleted, "update completed", true)
	}
}

// roomless reports whether the slot's new task waits for room, and none before it had
// any: nothing is lost by going on.
func (u *updater) roomless(s *slot) bool {
	t := u.live(s)
	return !mayHaveRun(t) && t.Status.Err != "" && !slices.ContainsFunc(s.tasks, mayHaveRun)
}

// reached returns when the slot's new task ran, or failed to.
func (u *updater) reached(s *slot) (time.Time, bool) {
	if t := u.live(s); u.running(t) {
		return since(t), true
	}
	if t := u.failure(s); t != nil {
		return since(t), true
	}
	return time.Time{}, false
}

// replace puts a task of the newest spec in a slot.
func (u *updater) replace(s *slot) {
	if u.config.Order == swarm.UpdateOrderStartFirst && u.running(u.live(s)) {
		u.newTask(s)
		return
	}
	u.end(s)
	u.create(s, 0)
}
