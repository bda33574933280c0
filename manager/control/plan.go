package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
	"github.com/legion-swarm/legion/manager/scheduler"
	"github.com/legion-swarm/legion/store"
)

// ServicePlan says what a service's update, or its creation where none has the
// name, would do: by the functions that would do it, on a snapshot. Nothing is
// written. What happens later (failures, nodes that come and go) is not foreseen.
func (c *Control) ServicePlan(_ context.Context, name string, spec *swarm.ServiceSpec) (*api.ServicePlan, error) {
	if err := ValidateService(spec); err != nil {
		return nil, err
	}
	view, now := c.cfg.Store.View(), c.cfg.Store.Now()
	n, old, err := c.intended(view, name, spec, now)
	if err != nil {
		return nil, err
	}
	f := &foresight{view: view, service: n, now: now, nodes: map[string]*api.Node{}}
	p := &api.ServicePlan{Name: n.Spec.Name, Tasks: []api.PlannedTask{}, Refused: []api.NodeRefusal{}, Changes: []string{"new service"}}
	if old != nil {
		p.ID, p.Changes = old.ID, changes(&old.Spec, &n.Spec)
	}
	f.plan(p)
	p.Notes = notes(n, p)
	return p, nil
}

// intended is the service as it would be.
func (c *Control) intended(view *store.View, name string, spec *swarm.ServiceSpec, now time.Time) (n, old *api.Service, err error) {
	old, err = c.service(view, name)
	switch {
	case api.Is(err, api.NotFound):
		n = &api.Service{SpecVersion: 1, Number: 1, SpecSince: now}
		n.JobStatus = firstIteration(spec, now)
		n.ID = api.NewID()
		n.Spec, err = resolve(view, spec)
	case err == nil:
		n, err = updated(view, old, spec, ServiceOptions{}, now)
	}
	if err != nil {
		return nil, nil, err
	}
	return n, old, publish(view, n)
}

// foresight is the future of one service.
type foresight struct {
	view    *store.View
	service *api.Service
	now     time.Time
	nodes   map[string]*api.Node
	tasks   []*api.Task
	ended   map[string]swarm.TaskState
}

// plan has the orchestrator do all at once that it would do bit by bit, and the
// scheduler place what comes of it.
func (f *foresight) plan(p *api.ServicePlan) {
	for n := range store.List[*api.Node](f.view) {
		f.nodes[n.ID] = n
	}
	for t := range store.List[*api.Task](f.view, store.ByService(f.service.ID)) {
		f.tasks = append(f.tasks, t)
	}
	s := *f.service
	s.UpdateStatus, s.Promoted = nil, s.SpecVersion
	s.Spec.UpdateConfig = &swarm.UpdateConfig{FailureAction: swarm.UpdateFailureActionContinue}
	in := orchestrator.Input{Service: &s, Tasks: f.tasks, Nodes: f.nodes, Now: f.now, NewID: api.NewID, History: -1}
	in.Fits = func(t *api.Task, node string) bool { return scheduler.Fits(f.view, t, node) == "" }
	former := func(t *api.Task) bool { return s.Job() && !s.Iteration(t) } // they end before others are made
	in.Tasks = slices.DeleteFunc(slices.Clone(f.tasks), former)
	out := orchestrator.Plan(in)
	for _, t := range f.tasks {
		if former(t) {
			out.Desired[t.ID] = swarm.TaskStateRemove
		}
	}
	f.ended = out.Desired

	type place struct {
		slot int
		node string
	}
	at := func(t *api.Task) place {
		if t.Spec.Global {
			return place{node: t.NodeID}
		}
		return place{slot: t.Slot}
	}
	leaving := map[place]*api.Task{}
	for _, t := range f.tasks {
		switch {
		case api.Final(t.Status.State):
		case api.ToldToEnd(out.Desired[t.ID]):
			leaving[at(t)] = t
		case !api.ToldToEnd(t.DesiredState):
			p.Unchanged++
		}
	}
	for _, forecast := range f.placed(out.Create) {
		t := api.PlannedTask{Name: f.name(forecast.Task), Action: api.PlannedCreate, To: f.host(forecast.NodeID), Why: forecast.Why}
		if old := leaving[at(forecast.Task)]; old != nil {
			delete(leaving, at(forecast.Task))
			t.Action, t.TaskID, t.From = api.PlannedReplace, old.ID, f.host(old.NodeID)
		}
		p.Tasks = append(p.Tasks, t)
		if len(p.Refused) == 0 {
			p.Refused = f.refused(forecast.Refused)
		}
	}
	for _, t := range leaving {
		p.Tasks = append(p.Tasks, api.PlannedTask{Name: f.name(t), Action: api.PlannedEnd, TaskID: t.ID, From: f.host(t.NodeID)})
	}
	slices.SortFunc(p.Tasks, func(a, b api.PlannedTask) int {
		return cmp.Or(cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
}

// placed asks the scheduler. Of those that are started first, as many as go at once
// have to find room beside what they replace.
func (f *foresight) placed(tasks []*api.Task) []scheduler.Forecast {
	gone := func(t *api.Task) bool { return api.ToldToEnd(f.ended[t.ID]) }
	u := updateDefaults(f.service.Spec.UpdateConfig)
	if u.Order != swarm.UpdateOrderStartFirst {
		return scheduler.Preview(f.view, tasks, gone, f.now)
	}
	first := len(tasks)
	if u.Parallelism > 0 && u.Parallelism < uint64(first) {
		first = int(u.Parallelism)
	}
	out := scheduler.Preview(f.view, tasks[:first], nil, f.now)
	if first == len(tasks) {
		return out
	}
	all := scheduler.Preview(f.view, tasks, gone, f.now)
	return append(out, all[first:]...)
}

func (f *foresight) name(t *api.Task) string {
	if t.Spec.Global {
		return f.service.Spec.Name + "." + f.host(t.NodeID)
	}
	return f.service.Spec.Name + "." + strconv.Itoa(t.Slot)
}

func (f *foresight) host(node string) string {
	if n := f.nodes[node]; n != nil && n.Description.Hostname != "" {
		return n.Description.Hostname
	}
	return node
}

func (f *foresight) refused(by []scheduler.Refusal) []api.NodeRefusal {
	out := []api.NodeRefusal{}
	for _, r := range by {
		for _, n := range r.Nodes {
			out = append(out, api.NodeRefusal{NodeID: n, Hostname: f.host(n), Why: r.Why})
		}
	}
	slices.SortFunc(out, func(a, b api.NodeRefusal) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.NodeID, b.NodeID))
	})
	return out
}

// notes say how tasks would be replaced.
func notes(s *api.Service, p *api.ServicePlan) []string {
	out := append([]string{}, warnings(&s.Spec)...)
	replaced := 0
	for _, t := range p.Tasks {
		if t.Action == api.PlannedReplace {
			replaced++
		}
	}
	if replaced == 0 {
		return out
	}
	u := updateDefaults(s.Spec.UpdateConfig)
	pace := "all at once"
	if u.Parallelism > 0 && u.Parallelism < uint64(replaced) {
		pace = fmt.Sprintf("%d at a time, %s apart", u.Parallelism, u.Delay)
	}
	out = append(out, fmt.Sprintf("tasks are replaced %s, %s; on failure: %s", pace, u.Order, u.FailureAction))
	policy, err := api.ParsePolicy(s.Spec.Labels)
	switch {
	case err != nil || policy.Canary == 0 || policy.Canary >= replaced:
	case policy.Promote == api.PromoteHealth:
		out = append(out, fmt.Sprintf("after %d of them the update goes on if they run for %s", policy.Canary, u.Monitor))
	default:
		out = append(out, fmt.Sprintf("after %d of them the update waits for: legion service promote %s", policy.Canary, s.Spec.Name))
	}
	return out
}
