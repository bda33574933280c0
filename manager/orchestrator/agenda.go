package orchestrator

import "time"

// agenda has the services to plan: now, and at given times.
type agenda struct {
	now    map[string]struct{}
	order  []string
	timers map[string]time.Time
	places map[string]map[place]struct{} // of services of which only these are to be planned
}

func newAgenda() *agenda {
	return &agenda{now: map[string]struct{}{}, timers: map[string]time.Time{}, places: map[string]map[place]struct{}{}}
}

// add has a service planned next. Tasks without a service have none.
func (a *agenda) add(id string) {
	delete(a.places, id)
	if _, ok := a.now[id]; ok || id == "" {
		return
	}
	a.now[id] = struct{}{}
	a.order = append(a.order, id)
}

// at has a service planned at a time, unless that is done earlier anyhow.
func (a *agenda) at(id string, t time.Time) {
	if old, ok := a.timers[id]; !ok || t.Before(old) {
		a.timers[id] = t
	}
}

// take returns up to n services to plan now.
func (a *agenda) take(n int) []string {
	batch := a.order[:min(n, len(a.order))]
	a.order = a.order[len(batch):]
	for _, id := range batch {
		delete(a.now, id)
		if a.places[id] == nil {
			delete(a.timers, id) // the plan says anew when to look again
		}
	}
	return batch
}

// next is the earliest time at which a service is to be planned.
func (a *agenda) next() (at time.Time, ok bool) {
	for _, t := range a.timers {
		if !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

// due moves to now what has come.
func (a *agenda) due(now time.Time) {
	for id, t := range a.timers {
		if !t.After(now) {
			delete(a.timers, id)
			a.add(id)
		}
	}
}
