package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// The restart policy's delay is the least that a replacement waits. After some
// quick failures in a row the delay doubles with each, so that what can't work
// does not eat its node; a task that lives through calmTime ends the row.
const (
	// calmTime is how long a task has to live for its end not to be quick.
	calmTime = 30 * time.Second
	// quickFailures are forgiven before the delay grows, rejections (its image is
	// missing, say) before it does for tasks that could not even be prepared.
	quickFailures = 4
	rejections    = 1
	// minBackoff is what a delay of nothing grows from; the others bound it.
	minBackoff   = time.Second
	maxBackoff   = time.Minute
	maxRejection = 5 * time.Minute
)

// quick reports whether a task ended by itself soon after it might start.
func quick(t *api.Task) bool {
	from := t.Born()
	if t.NotBefore.After(from) {
		from = t.NotBefore
	}
	return t.Status.State == swarm.TaskStateRejected || byItself(t) && since(t).Sub(from) < calmTime && t.Ran < calmTime
}

// row is how many quick failures in a row the tasks, newest first, begin with.
func row(tasks []*api.Task) int {
	for i, t := range tasks {
		if !quick(t) {
			return i
		}
	}
	return len(tasks)
}

// forgiven is how many quick failures in a row are restarted with the plain
// delay: less where so many are not remembered.
func (p *plan) forgiven() int {
	if p.History < 0 {
		return quickFailures
	}
	return max(1, min(quickFailures, int(p.History)-1))
}

// BackedOff reports whether a task waits, or has waited, for longer than the
// restart policy that it was made by asks for.
func BackedOff(t *api.Task) bool {
	least := defaultRestartDelay
	if r := t.Spec.RestartPolicy; r != nil && r.Delay != nil {
		least = *r.Delay
	}
	return t.NotBefore.Sub(t.CreatedAt) > least+minBackoff/2 // a task is written a little after it was planned
}

// delay is how long the slot's next task waits, after the one that just ended.
// The last delay is seen at the last task, so the row need not be remembered.
func (p *plan) delay(s *slot) time.Duration {
	least := *p.policy().Delay
	tasks := s.tasks
	for i, t := range tasks {
		if p.stale(t) {
			tasks = tasks[:i]
			break
		}
	}
	n := row(tasks)
	if n == 0 {
		return least
	}
	last := least
	if t := tasks[0]; BackedOff(t) {
		last = max(last, t.NotBefore.Sub(t.CreatedAt))
	}
	free, most := p.forgiven(), maxBackoff
	if tasks[0].Status.State == swarm.TaskStateRejected {
		free, most = rejections, maxRejection
	}
	if n <= free && last == least {
		return least
	}
	return max(least, min(2*max(last, minBackoff), most))
}

// jobDelay is the same for the tries of a job, newest first, of which all are
// remembered that count.
func (p *plan) jobDelay(tries []*api.Task) time.Duration {
	d := *p.policy().Delay
	for range row(tries) - quickFailures {
		d = max(d, min(2*max(d, minBackoff), maxBackoff))
	}
	return d
}
