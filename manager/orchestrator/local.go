package orchestrator

import (
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// maxPlaces is how many slots of a service are looked at one by one before the
// service is planned as a whole.
const maxPlaces = 64

// quiet reports whether the plan, of all tasks, found all as it should be. Then
// what happens in a slot concerns that slot alone, until the service or a node
// changes.
func (p *plan) quiet() bool {
	st := p.Service.UpdateStatus
	return p.out.changes() == 0 && p.out.Update == nil && !p.out.Waits &&
		(st == nil || !underWay(st.State)) && p.Service.Spec.Labels[api.RebalanceLabel] == ""
}

// PlanSlots plans some slots of a service whose last Plan was Quiet, for which
// nothing but tasks of these slots has changed since: in.Tasks are all of theirs. The
// result is Plan's, at a cost that does not grow with the service. It is false if
// what has changed concerns the service as a whole after all.
func PlanSlots(in Input) (Output, bool) {
	p := newPlan(in)
	p.group()
	p.orphan()
	for _, s := range p.slots {
		t := p.live(s)
		switch {
		case len(s.tasks) == 0: // it was given up
		case t == nil && !p.finished(s), t != nil && (p.stale(t) || p.evicted(t)):
			return Output{}, false
		default:
			p.tend(s)
		}
	}
	p.tidy()
	p.explain()
	p.release()
	p.reapRemoved()
	p.reapHistory()
	return p.out, true
}

// touch has a service planned because of one of its tasks.
func (s *session) touch(t *api.Task) {
	if s.quiet[t.ServiceID] == 0 {
		s.agenda.add(t.ServiceID)
		return
	}
	at := place{number: t.Slot}
	if t.Spec.Global {
		at = place{node: t.NodeID}
	}
	s.agenda.addPlace(t.ServiceID, at)
}

// local plans the slots that something has changed in; it is false if the whole
// service has to be looked at.
func (s *session) local(tx *store.Tx, in *Input, places []place) (Output, bool) {
	if len(places) == 0 || in.Service == nil || in.Service.Version.Index != s.quiet[in.Service.ID] {
		return Output{}, false
	}
	for _, at := range places {
		by := store.BySlot(in.Service.ID, at.number)
		if at.node != "" {
			by = store.ByNode(at.node)
		}
		for t := range store.List[*api.Task](tx, by) {
			if t.ServiceID == in.Service.ID && (at.node == "" || t.Spec.Global) {
				in.Tasks = append(in.Tasks, t)
			}
		}
	}
	out, ok := PlanSlots(*in)
	if !ok {
		in.Tasks = nil
	}
	return out, ok
}

func (a *agenda) addPlace(id string, at place) {
	if _, ok := a.now[id]; ok && a.places[id] == nil {
		return // the whole service is
	}
	if a.places[id] == nil {
		a.add(id)
		a.places[id] = map[place]struct{}{}
	}
	if a.places[id][at] = struct{}{}; len(a.places[id]) > maxPlaces {
		delete(a.places, id)
	}
}

// only returns the places that the services taken are to be planned for, where it
// is not the whole service.
func (a *agenda) only(services []string) map[string][]place {
	out := map[string][]place{}
	for _, id := range services {
		for at := range a.places[id] {
			out[id] = append(out[id], at)
		}
		delete(a.places, id)
	}
	return out
}
