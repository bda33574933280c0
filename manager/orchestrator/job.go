package orchestrator

import (
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// jobHistory is how many tries of a slot are kept at least while a job goes on:
// back-off counts them.
const jobHistory = 10

// standing is how far a slot of a job has come in the present iteration.
type standing uint8

const (
	// open slots want a task.
	open standing = iota
	// busy slots have one, or one that has not ended yet.
	busy
	// waiting slots want a task once the restart delay is over.
	waiting
	// done slots have completed.
	done
	// spent slots have failed as often as they may.
	spent
)

// job keeps a job's tasks: of the present iteration until they complete, of
// former ones none that run.
func (p *plan) job() {
	for _, s := range p.slots {
		p.endFormer(s)
	}
	switch {
	case p.Service.Stopped():
		p.stop()
	case p.spec.Global:
		p.globalJob()
	default:
		p.replicatedJob()
	}
	p.explain()
	p.reapRemoved()
	p.reapJob()
}

// endFormer ends the slot's tasks of former iterations.
func (p *plan) endFormer(s *slot) {
	for _, t := range s.tasks {
		if p.Service.Iteration(t) || api.Final(t.Status.State) || !p.wanted(t) {
			continue
		}
		if p.full() {
			return
		}
		p.want(t, swarm.TaskStateShutdown)
	}
}

// tries are the slot's tasks of the present iteration, newest first.
func (p *plan) tries(s *slot) []*api.Task {
	former := func(t *api.Task) bool { return !p.Service.Iteration(t) }
	n := slices.IndexFunc(s.tasks, former)
	switch {
	case n < 0:
		return s.tasks
	case slices.IndexFunc(s.tasks[n:], p.Service.Iteration) < 0:
		return s.tasks[:n]
	}
	return slices.DeleteFunc(slices.Clone(s.tasks), former) // a clock went back between them
}

// stand says how far a slot has come; with waiting also until when. It ends what
// must not go on: tasks that may not stay where they are, and those of a slot
// that has completed after all, on a node that was thought lost.
func (p *plan) stand(s *slot) (standing, time.Time) {
	tries := p.tries(s)
	if completed(tries) {
		for _, t := range tries {
			if t.Status.State != swarm.TaskStateComplete && p.wanted(t) && !p.full() {
				p.want(t, swarm.TaskStateShutdown)
			}
		}
		return done, time.Time{}
	}
	for _, t := range tries {
		switch {
		case !p.wanted(t):
		case p.full():
			return busy, time.Time{}
		case api.Final(t.Status.State) || p.evicted(t):
			p.want(t, swarm.TaskStateShutdown)
		default:
			return busy, time.Time{}
		}
	}
	if p.holds(s) > 0 {
		return busy, time.Time{}
	}
	return p.retry(tries)
}

// retry says whether a slot that has no task that could complete gets another.
func (p *plan) retry(tries []*api.Task) (standing, time.Time) {
	if len(tries) == 0 {
		return open, time.Time{}
	}
	t, r := tries[0], p.policy()
	switch {
	case !byItself(t):
		if r.Condition == swarm.RestartPolicyConditionNone && mayHaveRun(t) {
			return spent, time.Time{}
		}
		return open, time.Time{}
	case r.Condition == swarm.RestartPolicyConditionNone:
		return spent, time.Time{}
	case r.MaxAttempts != nil && *r.MaxAttempts > 0 && restarts(tries, r.Window, since(t)) >= *r.MaxAttempts:
		return spent, time.Time{}
	}
	delay := p.jobDelay(tries)
	if at := since(t).Add(delay); p.waits(at, delay) {
		return waiting, at
	}
	return open, time.Time{}
}

// restarts counts the tries that followed a failed one, within the window before
// the end of the last one if there is a window.
func restarts(tries []*api.Task, window *time.Duration, end time.Time) uint64 {
	var n uint64
	for i, t := range tries[:len(tries)-1] {
		if byItself(tries[i+1]) && within(window, t, end) {
			n++
		}
	}
	return n
}

func completed(tries []*api.Task) bool {
	for _, t := range tries {
		if t.Status.State == swarm.TaskStateComplete {
			return true
		}
	}
	return false
}

// holds is how many tasks of the slot, of any iteration, have not ended, as far
// as their nodes can tell.
func (p *plan) holds(s *slot) int {
	n := 0
	for _, tasks := range [2][]*api.Task{s.tasks, s.leaving} {
		for _, t := range tasks {
			if !ended(t) && !p.lost(t) {
				n++
			}
		}
	}
	return n
}

// try plans the slot's next task.
func (p *plan) try(s *slot) {
	t := p.newTask(s)
	t.DesiredState = swarm.TaskStateComplete
	t.JobIteration = &swarm.Version{Index: p.Service.JobStatus.JobIteration.Index}
}

// reapJob deletes, in each slot, ended tasks beyond the history that is kept,
// oldest first. What completed in the present iteration, its slot's last task,
// and what the restart policy counts stay.
func (p *plan) reapJob() {
	if p.History < 0 {
		return
	}
	counted := jobHistory
	if r := p.policy(); r.MaxAttempts != nil && *r.MaxAttempts > 0 {
		counted = max(counted, int(min(*r.MaxAttempts, maxHistory))+1)
	}
	for _, s := range p.slots {
		failing := len(s.tasks) > 0 && p.Service.Iteration(s.tasks[0]) && !completed(p.tries(s))
		for i := len(s.tasks) - 1; i >= 0; i-- {
			if t := s.tasks[i]; !ended(t) || p.keeps(t, i, failing, counted) {
				continue
			}
			if p.full() {
				return
			}
			p.out.Delete = append(p.out.Delete, s.tasks[i].ID)
		}
	}
}

// keeps reports whether a task that has ended, the i-th of its slot, stays.
func (p *plan) keeps(t *api.Task, i int, failing bool, counted int) bool {
	switch {
	case !mayHaveRun(t):
		return false
	case p.Service.Iteration(t) && t.Status.State == swarm.TaskStateComplete:
		return true
	case p.Service.Iteration(t) && failing:
		return i < max(counted, int(p.History))
	}
	return i == 0 || i < int(p.History)
}

// Outcome is what has become of a job's present iteration.
type Outcome struct {
	// Completed slots are done, Failed ones are not tried any more.
	Completed, Failed int
	// Over is set when nothing will run any more before the job is updated.
	Over bool
	// Last is a task that failed for good; nil if there is none.
	Last *api.Task
}

// JobOutcome tells how a job stands. in is as for Plan; the service is a job.
func JobOutcome(in Input) Outcome {
	in.MaxChanges = 0
	p := newPlan(in)
	p.group()
	out := Outcome{Over: !in.Service.Stopped()}
	slots := 0
	for _, s := range p.slots {
		if !p.spec.Global && s.number >= p.completions() {
			continue
		}
		switch st, _ := p.stand(s); {
		case st == done:
			out.Completed++
		case st == spent:
			out.Failed++
			out.Last = p.tries(s)[0]
		case p.spec.Global && len(p.tries(s)) == 0: // of a former iteration, on a node that is not asked now
			continue
		default:
			out.Over = false
		}
		slots++
	}
	out.Over = out.Over && slots > 0 && (p.spec.Global || slots == p.completions())
	return out
}
