package orchestrator

// completions is how many tasks of a replicated job are to complete.
func (p *plan) completions() int {
	if n := p.Service.Spec.Mode.ReplicatedJob.TotalCompletions; n != nil {
		return int(*n)
	}
	return p.concurrent()
}

// concurrent is how many of them may run at the same time.
func (p *plan) concurrent() int {
	if n := p.Service.Spec.Mode.ReplicatedJob.MaxConcurrent; n != nil {
		return int(*n)
	}
	return 1
}

// replicatedJob has each slot from 0 on run to completion, the lowest first, as
// many at a time as the job allows. A slot that waits for its restart delay
// keeps no other from running.
func (p *plan) replicatedJob() {
	total, room := p.completions(), p.concurrent()
	have := make(map[int]*slot, len(p.slots))
	for _, s := range p.slots {
		room -= p.holds(s)
		if s.number < total {
			have[s.number] = s
		} else {
			p.removeAll(s.tasks)
		}
	}
	next := 0
	for _, s := range p.slots { // by number
		if s.number >= total {
			break
		}
		room = p.fill(&next, s.number, room)
		next = s.number + 1
		switch st, at := p.stand(s); {
		case st == waiting:
			p.again(at)
		case st == open && room > 0 && !p.full():
			p.try(s)
			room--
		}
	}
	p.fill(&next, total, room)
}

// fill takes slots that had no task yet into use, from next on.
func (p *plan) fill(next *int, end, room int) int {
	for ; *next < end && room > 0 && !p.full(); *next++ {
		p.try(&slot{number: *next})
		room--
	}
	return room
}
