package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// recently is how old what a leader's loop acted on may be when it is written: disks
// that take seconds, entries that wait for a majority.
const recently = 12 * time.Second

// rules checks placements: when a task comes to a node, that may have it. What holds
// for addresses, ports and resources at all times is in holdings. What a scheduler did
// not know yet of a node, or of tasks that have just ended, is no mistake.
type rules struct {
	*holdings
	unsure map[string]time.Time            // when a node last changed
	on     map[string]map[string]*api.Task // that take room, by node
	since  map[string]time.Time            // when each came
	left   map[string]time.Time            // when a service last had a task on a node, by both
	came   []*api.Task
	owed   map[string]owed // tasks that came to where others were on their way to
}

// owed is what has to come where a task is, and until when.
type owed struct {
	what string // as servedAt has it
	end  time.Time
}

func newRules(h *holdings) *rules {
	return &rules{holdings: h, unsure: map[string]time.Time{}, on: map[string]map[string]*api.Task{}, since: map[string]time.Time{}, owed: map[string]owed{}, left: map[string]time.Time{}}
}

// change follows an object; it comes after holdings.
func (r *rules) change(c store.Change) {
	if was, is := c.Old, c.New; c.Kind == store.KindNode {
		a, _ := was.(*api.Node)
		b, _ := is.(*api.Node)
		if a == nil || b == nil || a.Status.State != b.Status.State || a.Spec.Availability != b.Spec.Availability || fmt.Sprint(a.Spec.Labels, a.Role) != fmt.Sprint(b.Spec.Labels, b.Role) {
			r.unsure[c.ID] = time.Now()
		}
		return
	}
	was, _ := c.Old.(*api.Task)
	is, _ := c.New.(*api.Task)
	if was != nil && placed(was) {
		delete(r.on[was.NodeID], was.ID)
		if is == nil || !placed(is) {
			delete(r.since, was.ID)
			delete(r.owed, was.ID)
		}
		r.left[servedAt(was)] = time.Now()
	}
	if is != nil && placed(is) {
		if r.on[is.NodeID] == nil {
			r.on[is.NodeID] = map[string]*api.Task{}
		}
		r.on[is.NodeID][is.ID] = is
		if was != nil && !placed(was) {
			r.came = append(r.came, is)
			r.since[is.ID] = time.Now()
			for id, o := range r.owed {
				if o.what == servedAt(is) {
					delete(r.owed, id)
				}
			}
		}
	}
}

func servedAt(t *api.Task) string { return t.NodeID + " " + strings.ToLower(t.Spec.ServiceName) }

// look says which of the tasks that have come to nodes should not have.
func (r *rules) look() string {
	defer func() { r.came = r.came[:0] }()
	for id, o := range r.owed {
		if time.Now().After(o.end) {
			delete(r.owed, id)
			return fmt.Sprintf("task %s came to where no task of the service is that it is to be with: %s", id, o.what)
		}
	}
	for _, t := range r.came {
		if what := r.misplaced(t); what != "" {
			return fmt.Sprintf("task %s of %s came to %s: %s", t.ID, t.Spec.ServiceName, t.NodeID, what)
		}
	}
	return ""
}

func (r *rules) misplaced(t *api.Task) string {
	if n := r.nodes[t.NodeID]; n != nil && time.Since(r.unsure[t.NodeID]) > recently {
		cs, err := api.ParseConstraints(placement(t.Spec.Placement).Constraints)
		switch {
		case err != nil:
			return err.Error()
		case n.Status.State != swarm.NodeStateReady || n.Spec.Availability != swarm.NodeAvailabilityActive:
			return fmt.Sprintf("it is %s and %s", n.Status.State, n.Spec.Availability)
		case !api.MatchAll(cs, n):
			return fmt.Sprintf("%v does not hold", placement(t.Spec.Placement).Constraints)
		}
	}
	if most := placement(t.Spec.Placement).MaxReplicas; most > 0 {
		have := uint64(0)
		for _, o := range r.on[t.NodeID] {
			// Those of another version may come by a rule of their own at the same time.
			known := o.SpecVersion == t.SpecVersion || time.Since(r.since[o.ID]) > recently
			if known && o.ServiceID == t.ServiceID && o.Evicted == "" && !api.ToldToEnd(o.DesiredState) {
				have++
			}
		}
		if have > most {
			return fmt.Sprintf("%d tasks of the service are there, not %d at most", have, most)
		}
	}
	policy, err := api.ParsePolicy(t.Spec.ServiceLabels)
	if err != nil {
		return err.Error()
	}
	for _, rule := range policy.Affinity {
		if what := r.broken(t, rule); what != "" {
			return what
		}
	}
	return ""
}

// broken says how a hard rule of affinity is not kept.
func (r *rules) broken(t *api.Task, rule api.Affinity) string {
	name := strings.ToLower(rule.Service)
	here, elsewhere := false, false
	for node, tasks := range r.on {
		for _, o := range tasks {
			if o.ID == t.ID || strings.ToLower(o.Spec.ServiceName) != name {
				continue
			}
			if rule.Apart && time.Since(r.since[o.ID]) <= recently {
				continue // nobody keeps it away, and nobody may have known of it
			}
			here, elsewhere = here || node == t.NodeID, elsewhere || node != t.NodeID
		}
	}
	switch {
	case rule.Soft:
	case rule.Apart && here:
		return "service " + rule.Service + " is there, which it is to be apart from"
	case rule.Apart || here || time.Since(r.left[t.NodeID+" "+name]) <= recently:
	case name == strings.ToLower(t.Spec.ServiceName) && !elsewhere: // the first goes where it likes
	default:
		r.owed[t.ID] = owed{t.NodeID + " " + name, time.Now().Add(recently)}
	}
	return ""
}
