package control

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// What a filter names must be there, or have tasks that are.
func TestTaskFiltersNameWhatIs(t *testing.T) {
	f := setUp(t)
	web := f.create(spec("web"))
	f.task("aaa1", web, func(t *api.Task) { t.NodeID = "gonenode" })
	for _, fl := range []api.Filters{{"service": {"nothere"}}, {"node": {"nothere"}}, {"service": {"web", "nothere"}}} {
		_, err := f.TaskList(t.Context(), fl)
		refused(t, err, api.NotFound, "nothere not found")
	}
	if err := f.ServiceRemove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	for _, fl := range []api.Filters{{"service": {web.ID}}, {"node": {"gonenode"}}} {
		if l, err := f.TaskList(t.Context(), fl); err != nil || len(l) != 1 {
			t.Errorf("%v: %d tasks, %v", fl, len(l), err)
		}
	}
	_, err := f.TaskList(t.Context(), api.Filters{"_up-to-date": {"maybe"}})
	refused(t, err, api.Invalid, "up-to-date=maybe")
}

// Labels are those of the task's service; its container's are not asked for.
func TestTaskLabelFilter(t *testing.T) {
	f := setUp(t)
	s := spec("web")
	s.Labels = map[string]string{"tier": "front"}
	s.TaskTemplate.ContainerSpec.Labels = map[string]string{"job": "web"}
	f.task("aaa1", f.create(s), func(*api.Task) {})
	f.task("bbb1", f.create(spec("db")), func(*api.Task) {})
	for label, want := range map[string]int{"tier": 1, "tier=front": 1, "tier=back": 0, "job": 0, "job=web": 0} {
		if l, err := f.TaskList(t.Context(), api.Filters{"label": {label}}); err != nil || len(l) != want {
			t.Errorf("%s: %d tasks, %v; want %d", label, len(l), err, want)
		}
	}
}

// What clients leave out is filled in; what says nothing is not kept.
func TestComplete(t *testing.T) {
	in := spec("web")
	in.TaskTemplate.Runtime = swarm.RuntimeContainer
	in.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}, {TargetPort: 81, Protocol: "udp", PublishMode: swarm.PortConfigPublishModeHost}}}
	c := Complete(in)
	if e := c.EndpointSpec; e.Mode != swarm.ResolutionModeVIP || e.Ports[0].Protocol != "tcp" || e.Ports[0].PublishMode != swarm.PortConfigPublishModeIngress ||
		e.Ports[1] != in.EndpointSpec.Ports[1] || c.TaskTemplate.Runtime != "" {
		t.Errorf("%+v", c)
	}
	if in.EndpointSpec.Mode != "" || in.EndpointSpec.Ports[0].Protocol != "" {
		t.Error("the client's spec was changed")
	}
}
