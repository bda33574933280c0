package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
)

func TestSwarmEvent(t *testing.T) {
	service := func(version, replicas uint64) *api.Service {
		s := &api.Service{}
		s.ID, s.Spec.Name, s.Version.Index = "s1", "web", version
		s.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		return s
	}
	image := func(s *api.Service, image string, state swarm.UpdateState) *api.Service {
		s.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: image}
		if state != "" {
			s.UpdateStatus = &swarm.UpdateStatus{State: state}
		}
		return s
	}
	role := func(wanted, has swarm.NodeRole, availability swarm.NodeAvailability) *api.Node {
		n := &api.Node{Role: has}
		n.ID, n.Spec.Name, n.Description.Hostname, n.Spec.Role, n.Spec.Availability = "n1", "named", "one", wanted, availability
		return n
	}
	secret := func(label string) *api.Secret {
		s := &api.Secret{}
		s.ID, s.Spec.Name, s.Spec.Labels = "x1", "pw", map[string]string{"a": label}
		return s
	}
	message := func(kind events.Type, action events.Action, id string, attrs map[string]string) *events.Message {
		return &events.Message{Type: kind, Action: action, Scope: "swarm", Actor: events.Actor{ID: id, Attributes: attrs}}
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
		{"image", image(service(1, 3), "app:1", swarm.UpdateStateCompleted), image(service(2, 3), "app:2", swarm.UpdateStateUpdating), message("service", "update", "s1",
			map[string]string{"name": "web", "image.old": "app:1", "image.new": "app:2", "updatestate.old": "completed", "updatestate.new": "updating"})},
		{"first update", image(service(1, 3), "app:1", ""), image(service(2, 3), "app:1", swarm.UpdateStateUpdating), message("service", "update", "s1",
			map[string]string{"name": "web", "updatestate.new": "updating"})},
		{"allocated", service(1, 3), service(2, 3), nil},
		{"drained", role("worker", "worker", "active"), role("worker", "worker", "drain"), message("node", "update", "n1",
			map[string]string{"name": "named", "availability.old": "active", "availability.new": "drain"})},
		{"promotion is wanted", role("worker", "worker", "active"), role("manager", "worker", "active"), message("node", "update", "n1", map[string]string{"name": "named"})},
		{"promoted", role("manager", "worker", "active"), role("manager", "manager", "active"), message("node", "update", "n1",
			map[string]string{"name": "named", "role.old": "worker", "role.new": "manager"})},
		{"secret", nil, secret("b"), message("secret", "create", "x1", map[string]string{"name": "pw"})},
		{"secret's labels", secret("b"), secret("c"), message("secret", "update", "x1", map[string]string{"name": "pw"})},
		{"secret as it was", secret("b"), secret("b"), nil},
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

func TestManagerEvent(t *testing.T) {
	n := &api.Node{}
	n.ID, n.Description.Hostname = "n1", "one"
	up := swarm.ManagerStatus{Reachability: swarm.ReachabilityReachable}
	lead, lost := up, up
	lead.Leader, lost.Reachability = true, swarm.ReachabilityUnreachable
	if m, ok := managerEvent(n, up, up, time.Now()); ok {
		t.Errorf("nothing changed, and it tells %v", m)
	}
	m, _ := managerEvent(n, up, lead, time.Now())
	if diff := cmp.Diff(map[string]string{"name": "one", "leader.old": "false", "leader.new": "true"}, m.Actor.Attributes); diff != "" || m.Scope != "swarm" {
		t.Error(diff, m)
	}
	m, _ = managerEvent(n, up, lost, time.Now())
	if diff := cmp.Diff(map[string]string{"name": "one", "reachability.old": "reachable", "reachability.new": "unreachable"}, m.Actor.Attributes); diff != "" {
		t.Error(diff)
	}
}

// listen collects what a node tells of the swarm.
func (n *testNode) listen() <-chan events.Message {
	n.t.Helper()
	p, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	said := make(chan events.Message, 1000)
	tell := &teller{store: p.store, publish: func(m events.Message) { said <- m }}
	tell.catchUp(p.store.View())
	ctx, cancel := context.WithCancel(n.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = tell.objects(ctx) })
	wg.Go(func() { _ = tell.managers(ctx, p) })
	n.t.Cleanup(func() { cancel(); wg.Wait() })
	return said
}

// hears waits for an event and returns it with how long ago the wait began.
func hears(t *testing.T, said <-chan events.Message, kind events.Type, action events.Action, attr string) time.Duration {
	t.Helper()
	began, late := time.Now(), time.NewTimer(20*time.Second)
	defer late.Stop()
	for {
		select {
		case m := <-said:
			if m.Type == kind && m.Action == action && (attr == "" || m.Actor.Attributes[attr] != "") {
				return time.Since(began)
			}
		case <-late.C:
			t.Fatalf("never: %s %s with %q", kind, action, attr)
		}
	}
}

// TestEveryManagerTells: what one manager does, all tell of at once; and who leads.
func TestEveryManagerTells(t *testing.T) {
	nodes := managers(t, 3)
	var said []<-chan events.Message
	for _, n := range nodes {
		said = append(said, n.listen())
	}
	nodes[1].create(spec("web", 1))
	for i := range nodes {
		if took := hears(t, said[i], events.ServiceEventType, events.ActionCreate, "name"); took > time.Second { // 100 ms but for a busy machine
			t.Errorf("manager %d told after %v", i, took)
		}
	}
	p, err := nodes[0].leading()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.raft.TransferLeadership(t.Context(), 0); err != nil && !api.Is(err, api.Unavailable) {
		t.Fatal(err)
	}
	for i := range nodes {
		hears(t, said[i], events.NodeEventType, events.ActionUpdate, "leader.new")
	}
}

// TestTellerCatchesUp: what happened while nobody watched is told, once.
func TestTellerCatchesUp(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("goes", 0))
	n.create(spec("stays", 0))
	p, err := n.leading()
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	tell := &teller{store: p.store, publish: func(m events.Message) { said = append(said, string(m.Action)+" "+m.Actor.Attributes["name"]) }}
	tell.catchUp(p.store.View())
	if err := n.ServiceRemove(t.Context(), "goes"); err != nil {
		t.Fatal(err)
	}
	n.create(spec("comes", 0))
	s, err := n.ServiceInspect(t.Context(), "stays", false)
	if err != nil {
		t.Fatal(err)
	}
	s.Spec.Labels = map[string]string{"a": "b"}
	if _, err := n.ServiceUpdate(t.Context(), s.ID, s.Version.Index, &s.Spec, dockerapi.ServiceOptions{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		tell.catchUp(p.store.View())
	}
	slices.Sort(said)
	if diff := cmp.Diff([]string{"create comes", "remove goes", "update stays"}, said); diff != "" {
		t.Error(diff)
	}
}
