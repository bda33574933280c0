package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func TestSwarmEvent(t *testing.T) {
	service := func(version, replicas uint64) *api.Service {
		s := &api.Service{}
		s.ID, s.Spec.Name, s.Version.Index = "s1", "web", version
		s.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		return s
	}
	node := func(state swarm.NodeState, addr string) *api.Node {
		n := &api.Node{ManagerAddr: addr}
		n.ID, n.Description.Hostname, n.Status.State = "n1", "one", state
		return n
	}
	for _, c := range []struct {
		name          string
		before, after any
		want          *events.Message
	}{
		{"created", nil, service(1, 3), &events.Message{Type: "service", Action: "create", Scope: "swarm",
			Actor: events.Actor{ID: "s1", Attributes: map[string]string{"name": "web"}}}},
		{"scaled", service(1, 3), service(2, 5), &events.Message{Type: "service", Action: "update", Scope: "swarm",
			Actor: events.Actor{ID: "s1", Attributes: map[string]string{"name": "web", "replicas.old": "3", "replicas.new": "5"}}}},
		{"removed", service(1, 3), nil, &events.Message{Type: "service", Action: "remove", Scope: "swarm",
			Actor: events.Actor{ID: "s1", Attributes: map[string]string{"name": "web"}}}},
		{"down", node("ready", ""), node("down", ""), &events.Message{Type: "node", Action: "update", Scope: "swarm",
			Actor: events.Actor{ID: "n1", Attributes: map[string]string{"name": "one", "state.old": "ready", "state.new": "down"}}}},
		{"address only", node("ready", "a"), node("ready", "b"), nil},
		{"task", nil, &api.Task{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(7, 9)
			got, ok := swarmEvent(c.before, c.after, now)
			if c.want == nil {
				if ok {
					t.Fatalf("got %+v; want none", got)
				}
				return
			}
			c.want.Time, c.want.TimeNano = now.Unix(), now.UnixNano()
			if diff := cmp.Diff(*c.want, got); !ok || diff != "" {
				t.Fatalf("%v, %s", ok, diff)
			}
		})
	}
}
