package dockerapi

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// What Docker shows though nobody said it, with every way to ask.
func TestShown(t *testing.T) {
	s := newServer(t, newFake())
	for _, c := range []struct{ request, want string }{
		{"GET /nodes", `"Spec":{"Labels":{},`},
		{"GET /nodes/self", `"Spec":{"Labels":{},`},
		{"GET /swarm", `"Spec":{"Labels":{},`},
		{"GET /configs/c", `"Labels":{}`},
		{"GET /secrets/s", `"Labels":{}`},
		{"GET /services", `"Runtime":"container"`},
		{"GET /services/web", `"Isolation":"default"`},
		{"GET /tasks", `"Isolation":"default"`},
		{"GET /tasks/" + taskID, `"Isolation":"default"`},
	} {
		if w := do(s, c.request, "", nil); !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: no %s in %s", c.request, c.want, w.Body)
		}
	}
}

// Before 1.45 a container's short id is among its aliases in users' networks.
func TestAliasesBefore145(t *testing.T) {
	in := &container.InspectResponse{ID: webID, NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
		"mine": {Aliases: []string{"db"}}, "bridge": {}, "bare": {Aliases: []string{webID[:12]}},
	}}}
	for v, want := range map[int]map[string]int{44: {"mine": 2, "bridge": 0, "bare": 1}, 45: {"mine": 1, "bridge": 0, "bare": 1}} {
		b, err := json.Marshal(inspectFor(Version{1, v}, in))
		if err != nil {
			t.Fatal(err)
		}
		var out container.InspectResponse
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatal(err)
		}
		for name, n := range want {
			if a := out.NetworkSettings.Networks[name].Aliases; len(a) != n || n == 2 && a[1] != webID[:12] {
				t.Errorf("1.%d, %s: %v", v, name, a)
			}
		}
	}
	if len(in.NetworkSettings.Networks["mine"].Aliases) != 1 {
		t.Error("what is kept was changed")
	}
}

// Clients may leave parts of a spec empty that the command line fills in.
func TestSettle(t *testing.T) {
	s := swarm.ServiceSpec{
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Mounts: []mount.Mount{{Target: "/x", Source: "/tmp"}, {Type: "Volume", Target: "/y"}}},
			RestartPolicy: &swarm.RestartPolicy{},
		},
		UpdateConfig: &swarm.UpdateConfig{}, RollbackConfig: &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst},
		EndpointSpec: &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}, {TargetPort: 53, Protocol: "UDP", PublishMode: "Host"}}},
	}
	job := swarm.ServiceSpec{Mode: swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}, TaskTemplate: swarm.TaskSpec{RestartPolicy: &swarm.RestartPolicy{}}}
	settle(&s)
	settle(&job)
	none := uint64(0)
	want := swarm.ServiceSpec{
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Mounts: []mount.Mount{{Type: "bind", Target: "/x", Source: "/tmp"}, {Type: "volume", Target: "/y"}}},
			RestartPolicy: &swarm.RestartPolicy{Condition: "any", MaxAttempts: &none},
		},
		UpdateConfig: &swarm.UpdateConfig{FailureAction: "pause", Order: "stop-first"}, RollbackConfig: &swarm.UpdateConfig{FailureAction: "pause", Order: "start-first"},
		EndpointSpec: &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{
			{TargetPort: 80, Protocol: "tcp", PublishMode: "ingress"}, {TargetPort: 53, Protocol: "udp", PublishMode: "host"},
		}},
	}
	if d := cmp.Diff(want, s); d != "" {
		t.Error(d)
	}
	if c := job.TaskTemplate.RestartPolicy.Condition; c != "" {
		t.Errorf("a job restarts on %q", c)
	}
}

// A spec that comes back as it was shown is the spec that is stored.
func TestShownAndSentBack(t *testing.T) {
	stored := testService().Spec
	sent := stored
	shownServiceSpec(&sent)
	if sent.TaskTemplate.Runtime != swarm.RuntimeContainer || stored.TaskTemplate.ContainerSpec.Isolation != "" {
		t.Errorf("shown %+v of %+v", sent.TaskTemplate, stored.TaskTemplate)
	}
	settle(&sent)
	if d := cmp.Diff(stored, sent); d != "" {
		t.Error(d)
	}
}
