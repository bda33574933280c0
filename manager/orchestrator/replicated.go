package orchestrator

import (
	"cmp"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func (p *plan) replicas() int {
	if r := p.Service.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return int(*r.Replicas)
	}
	return 1
}

// replicated keeps as many slots taken as the service asks for.
func (p *plan) replicated() {
	want := p.replicas()
	var taken []*slot
	free := map[int]*slot{}
	for _, s := range p.slots {
		if p.live(s) != nil || p.finished(s) {
			taken = append(taken, s)
		} else {
			free[s.number] = s
		}
	}
	if surplus := len(taken) - want; surplus > 0 {
		p.scaleDown(taken, surplus)
		taken = slices.DeleteFunc(taken, func(s *slot) bool {
			return len(s.tasks) > 0 && p.desired(s.tasks[0]) == swarm.TaskStateRemove
		})
	}
	used := map[int]bool{}
	for _, s := range taken {
		used[s.number] = true
		p.tend(s)
	}
	number := 1
	for range want - len(taken) {
		for used[number] {
			number++
		}
		used[number] = true
		s := free[number]
		if s == nil {
			s = &slot{number: number}
		}
		var after *api.Task
		if len(s.tasks) > 0 {
			after = s.tasks[0]
		}
		p.create(s, after, 0)
	}
}

// scaleDown removes n of the slots: first those that do not run, then those on
// the nodes that have most of the service's tasks, then the highest numbers.
func (p *plan) scaleDown(taken []*slot, n int) {
	onNode := map[string]int{}
	for _, s := range taken {
		if t := p.live(s); t != nil && running(t) {
			onNode[t.NodeID]++
		}
	}
	rest := slices.Clone(taken)
	for range n {
		i := p.surplus(rest, onNode)
		if t := p.live(rest[i]); t != nil && running(t) {
			onNode[t.NodeID]--
		}
		for _, t := range rest[i].tasks {
			p.want(t, swarm.TaskStateRemove)
		}
		rest = slices.Delete(rest, i, i+1)
	}
}

// surplus returns which slot can best be spared.
func (p *plan) surplus(slots []*slot, onNode map[string]int) int {
	rank := func(s *slot) int {
		t := p.live(s)
		if t == nil || !running(t) {
			return 1 << 30
		}
		return onNode[t.NodeID]
	}
	best := 0
	for i := range slots {
		if cmp.Or(cmp.Compare(rank(slots[i]), rank(slots[best])), cmp.Compare(slots[i].number, slots[best].number)) > 0 {
			best = i
		}
	}
	return best
}
