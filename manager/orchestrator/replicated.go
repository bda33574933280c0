package orchestrator

import (
	"cmp"
	"slices"
)

// replicas is how many slots there should be.
func (p *plan) replicas() int {
	if r := p.Service.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return int(*r.Replicas)
	}
	return 1
}

// replicated keeps as many slots taken as the service asks for.
func (p *plan) replicated() {
	want := p.replicas()
	taken := make([]*slot, 0, len(p.slots))
	free := map[int]*slot{}
	for _, s := range p.slots {
		if p.live(s) != nil || p.finished(s) {
			taken = append(taken, s)
		} else {
			free[s.number] = s
		}
	}
	if len(taken) > want {
		p.byWorth(taken)
		for _, s := range taken[want:] {
			p.removeAll(s.tasks)
		}
		taken = taken[:want]
	}
	p.drain(taken)
	for _, s := range taken {
		p.tend(s)
	}
	p.take(taken, free, want)
	// What is left of slots that nobody takes any more.
	for _, s := range p.slots {
		if free[s.number] != nil {
			p.removeAll(s.tasks)
		}
	}
}

// take takes free slots, the lowest numbers first, until there are as many as
// wanted.
func (p *plan) take(taken []*slot, free map[int]*slot, want int) {
	used := make(map[int]bool, want)
	for _, s := range taken {
		used[s.number] = true
	}
	number := 1
	for range want - len(taken) {
		if p.full() {
			clear(free) // who takes the rest is the next plan's affair
			return
		}
		for used[number] {
			number++
		}
		used[number] = true
		s := free[number]
		if s == nil {
			s = &slot{number: number}
		}
		delete(free, number)
		p.create(s, 0)
	}
}

// byWorth sorts slots so that those which can best be spared come last: those
// that do not run, then those on nodes that have most of the service's tasks,
// then the highest numbers.
func (p *plan) byWorth(slots []*slot) {
	slices.SortFunc(slots, func(a, b *slot) int { return cmp.Compare(a.number, b.number) })
	rank := make(map[*slot]int, len(slots))
	onNode := map[string]int{}
	for _, s := range slots {
		t := p.live(s)
		if !p.running(t) {
			rank[s] = len(slots)
			continue
		}
		rank[s] = onNode[t.NodeID] // the node's first, second…
		onNode[t.NodeID]++
	}
	slices.SortStableFunc(slots, func(a, b *slot) int { return cmp.Compare(rank[a], rank[b]) })
}
