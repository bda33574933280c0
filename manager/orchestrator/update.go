package orchestrator

import (
	"fmt"
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
	dirty    []*slot // with a task of another spec
	fresh    []*slot // with one of the newest
	failed   []*api.Task
}

// update goes on with the service's update, if there is one.
func (p *plan) update() {
	u := &updater{plan: p}
	st := p.Service.UpdateStatus
	u.rollback = st != nil && st.State == swarm.UpdateStateRollbackStarted
	u.config = updateConfig(p.Service, u.rollback)
	if st != nil && st.StartedAt != nil {
		u.started = *st.StartedAt
	}
	u.sort()
	switch {
	case st != nil && (st.State == swarm.UpdateStatePaused || st.State == swarm.UpdateStateRollbackPaused):
		return
	case st != nil && (st.State == swarm.UpdateStateUpdating || st.State == swarm.UpdateStateRollbackStarted):
		if u.tooManyFailures() {
			u.fail()
			return
		}
	case len(u.dirty) == 0:
		return
	default:
		u.started = p.Now
		u.status(swarm.UpdateStateUpdating, "update in progress", false)
	}
	u.finishStartFirst()
	u.advance()
}

func updateConfig(s *api.Service, rollback bool) swarm.UpdateConfig {
	c := s.Spec.UpdateConfig
	if rollback {
		c = s.Spec.RollbackConfig
	}
	if c == nil {
		c = &swarm.UpdateConfig{Parallelism: 1}
	}
	u := *c
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

func (u *updater) sort() {
	for _, s := range u.slots {
		for _, t := range s.tasks {
			if t.SpecVersion == u.Service.SpecVersion && !t.CreatedAt.Before(u.started) &&
				(t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected) {
				u.failed = append(u.failed, t)
			}
		}
		switch t := u.live(s); {
		case t == nil:
		case t.SpecVersion != u.Service.SpecVersion:
			u.dirty = append(u.dirty, s)
		default:
			u.fresh = append(u.fresh, s)
		}
	}
}

// tooManyFailures compares the slots whose new task failed with the ratio that
// the service allows.
func (u *updater) tooManyFailures() bool {
	slots := map[string]bool{}
	for _, t := range u.failed {
		slots[fmt.Sprint(t.Slot, t.NodeID)] = true
	}
	total := len(u.dirty) + len(u.fresh)
	return len(slots) > 0 && float32(len(slots)) > u.config.MaxFailureRatio*float32(total) &&
		u.config.FailureAction != swarm.UpdateFailureActionContinue
}

// fail does what the service asks for when an update goes wrong.
func (u *updater) fail() {
	why := "due to failure or early termination of task " + u.failed[0].ID
	switch {
	case u.rollback:
		u.status(swarm.UpdateStateRollbackPaused, "rollback paused "+why, false)
	case u.config.FailureAction == swarm.UpdateFailureActionRollback && u.Service.PreviousSpec != nil:
		s := Rollback(u.Service)
		s.UpdateStatus = &swarm.UpdateStatus{
			State: swarm.UpdateStateRollbackStarted, StartedAt: new(u.Now), Message: "update rolled back " + why,
		}
		u.out.Update = s
	default:
		u.status(swarm.UpdateStatePaused, "update paused "+why, false)
	}
}

// Rollback returns the service with its previous spec. It has one.
func Rollback(s *api.Service) *api.Service {
	r := *s
	r.Spec, r.SpecVersion, r.RegistryAuth = *s.PreviousSpec, s.PreviousSpecVersion, s.PreviousRegistryAuth
	r.PreviousSpec, r.PreviousSpecVersion, r.PreviousRegistryAuth = nil, 0, ""
	return &r
}

func (u *updater) status(state swarm.UpdateState, message string, done bool) {
	s := *u.Service
	s.UpdateStatus = &swarm.UpdateStatus{State: state, Message: message, StartedAt: &u.started}
	if done {
		s.UpdateStatus.CompletedAt = new(u.Now)
	}
	u.out.Update = &s
}

// finishStartFirst ends old tasks whose replacement runs.
func (u *updater) finishStartFirst() {
	for _, s := range u.fresh {
		if !running(u.live(s)) {
			continue
		}
		for _, t := range s.tasks {
			if t.SpecVersion != u.Service.SpecVersion {
				u.want(t, swarm.TaskStateShutdown)
			}
		}
	}
}

// advance updates as many slots as may be under way at once, and completes the
// update when all are done and were watched long enough.
func (u *updater) advance() {
	busy, settled := 0, u.started
	for _, s := range u.fresh {
		t := u.live(s)
		if t.CreatedAt.Before(u.started) {
			continue
		}
		if !running(t) {
			busy++
			continue
		}
		if end := t.Status.Timestamp.Add(u.config.Delay); len(u.dirty) > 0 && end.After(u.Now) {
			busy++
			u.again(end)
		}
		if end := t.Status.Timestamp.Add(u.config.Monitor); end.After(settled) {
			settled = end
		}
	}
	limit := int(u.config.Parallelism)
	if limit == 0 {
		limit = len(u.dirty)
	}
	for _, s := range u.dirty[:min(len(u.dirty), max(limit-busy, 0))] {
		u.replace(s)
	}
	if len(u.dirty) > 0 || busy > 0 || u.out.Update != nil {
		return
	}
	if settled.After(u.Now) {
		u.again(settled)
		return
	}
	if u.rollback {
		u.status(swarm.UpdateStateRollbackCompleted, "rollback completed", true)
	} else {
		u.status(swarm.UpdateStateCompleted, "update completed", true)
	}
}

// replace puts a task of the newest spec in a slot.
func (u *updater) replace(s *slot) {
	old := u.live(s)
	if u.config.Order == swarm.UpdateOrderStartFirst && running(old) {
		u.create(&slot{number: s.number, node: s.node}, nil, 0)
		return
	}
	for _, t := range s.tasks {
		if u.wanted(t) {
			u.want(t, swarm.TaskStateShutdown)
		}
	}
	u.create(s, old, 0)
}
