package scheduler

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// A preview tells where tasks would go with what is there, and who refuses the others.
func TestPreview(t *testing.T) {
	old := tasks("old", 1, func(sp *api.TaskSpec) {
		sp.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 80, PublishMode: "host"}}}
	})
	old[0].NodeID, old[0].Status.State, old[0].DesiredState = benchNode(0).ID, swarm.TaskStateRunning, swarm.TaskStateRunning
	s := filled(t, 2, old)
	web := tasks("web", 2, func(sp *api.TaskSpec) { sp.Endpoint = old[0].Spec.Endpoint })
	got := Preview(s.View(), web, nil, time.Time{})
	if got[0].NodeID != benchNode(1).ID || len(got[0].Refused) != 1 || got[0].Refused[0].Why != "host-mode port already in use on 1 node" {
		t.Errorf("%+v", got[0])
	}
	if got[1].NodeID != "" || got[1].Why != "no suitable node (host-mode port already in use on 2 nodes)" || len(got[1].Refused[0].Nodes) != 2 {
		t.Errorf("%+v", got[1])
	}
	got = Preview(s.View(), web, func(o *api.Task) bool { return o.ID == old[0].ID }, time.Time{})
	if got[0].NodeID == "" || got[1].NodeID == "" || len(got[0].Refused) > 0 {
		t.Errorf("what is gone still takes room: %+v", got)
	}
	if why := Fits(s.View(), web[0], benchNode(0).ID); why != "no suitable node (host-mode port already in use on 1 node)" {
		t.Error(why)
	}
	if why := Fits(s.View(), web[0], benchNode(1).ID); why != "" {
		t.Error(why)
	}
	if store.Count[*api.Task](s.View()) != 1 {
		t.Error("a preview writes")
	}
}

// A service that keeps together has no place where it has no task, though that node's
// tasks alone don't tell that it has some elsewhere.
func TestFitsWithItself(t *testing.T) {
	here, there := benchNode(0).ID, benchNode(1).ID
	for rule, want := range map[string][2]string{
		"":              {"", ""},
		"service==web":  {"", "no suitable node (affinity to service web not satisfied on 1 node)"},
		"service!=web":  {"no suitable node (anti-affinity to service web not satisfied on 1 node)", ""},
		"service==~web": {"", ""},
	} {
		web := tasks("web", 2, func(sp *api.TaskSpec) {
			sp.ServiceName = "web"
			if rule != "" {
				sp.ServiceLabels = map[string]string{api.AffinityLabel: rule}
			}
		})
		for _, task := range web {
			task.NodeID, task.Status.State, task.DesiredState = here, swarm.TaskStateRunning, swarm.TaskStateRunning
		}
		s := filled(t, 2, web)
		for i, id := range []string{here, there} {
			if why := Fits(s.View(), web[0], id); why != want[i] {
				t.Errorf("%s, %s: %q", rule, id, why)
			}
		}
	}
}
