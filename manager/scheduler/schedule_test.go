package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// state is a scheduler's state of nodes n0, n1… changed by fn.
func state(nodes int, fn func(i int, n *api.Node)) *State {
	s := New()
	for i := range nodes {
		n := benchNode(i)
		n.ID = fmt.Sprint("n", i)
		if fn != nil {
			fn(i, n)
		}
		s.SetNode(n)
	}
	return s
}

// tasks are n pending tasks of a service.
func tasks(service string, n int, fn func(s *api.TaskSpec)) []*api.Task {
	spec := &api.TaskSpec{ServiceName: service}
	if fn != nil {
		fn(spec)
	}
	out := make([]*api.Task, n)
	for i := range out {
		out[i] = &api.Task{ID: fmt.Sprint(service, i), ServiceID: service, SpecVersion: 1, Slot: i + 1, Spec: spec}
	}
	return out
}

// where says how many of the placements are on each node, "" for none.
func where(ps []Placement) map[string]int {
	m := map[string]int{}
	for _, p := range ps {
		m[p.NodeID]++
	}
	return m
}

func TestRefusals(t *testing.T) {
	gpu := []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 2}}}
	for want, c := range map[string]struct {
		node func(i int, n *api.Node)
		spec func(s *api.TaskSpec)
	}{
		"no suitable node (3 nodes not available for new tasks)": {
			node: func(i int, n *api.Node) {
				n.Spec.Availability = []swarm.NodeAvailability{"pause", "drain", "active"}[i]
				n.Status.State = []swarm.NodeState{"ready", "ready", "down"}[i]
			},
		},
		"no suitable node (insufficient resources on 3 nodes)": {
			node: func(_ int, n *api.Node) {
				n.Description.Resources = swarm.Resources{NanoCPUs: 1e9, MemoryBytes: 1 << 30}
			},
			spec: func(s *api.TaskSpec) {
				s.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 2e9}}
			},
		},
		"no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)": {
			node: func(i int, n *api.Node) {
				if i == 0 {
					n.Status.State = "down"
				}
			},
			spec: func(s *api.TaskSpec) {
				s.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: gpu}}
			},
		},
		"no suitable node (missing plugin on 3 nodes)": {
			spec: func(s *api.TaskSpec) {
				s.ContainerSpec = &swarm.ContainerSpec{Mounts: []mount.Mount{{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "nfs"}}}}}
			},
		},
		"no suitable node (scheduling constraints not satisfied on 3 nodes)": {
			spec: func(s *api.TaskSpec) { s.Placement = &swarm.Placement{Constraints: []string{"node.labels.x==y"}} },
		},
		"no suitable node (unsupported platform on 3 nodes)": {
			spec: func(s *api.TaskSpec) { s.Placement = &swarm.Placement{Platforms: []swarm.Platform{{OS: "windows"}}} },
		},
	} {
		p := state(3, c.node).Schedule(tasks("web", 1, c.spec), time.Time{})[0]
		if p.NodeID != "" || p.Why != want {
			t.Errorf("got %q %q, want %q", p.NodeID, p.Why, want)
		}
	}
	if p := New().Schedule(tasks("web", 1, nil), time.Time{})[0]; p.Why != "no suitable node (the swarm has no nodes)" {
		t.Error(p.Why)
	}
}

// What earlier tasks of the same batch take is not there for later ones.
func TestRoomRunsOut(t *testing.T) {
	ps := state(2, func(_ int, n *api.Node) { n.Description.Resources.MemoryBytes = 3 << 30 }).Schedule(tasks("web", 8, func(s *api.TaskSpec) {
		s.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 30}}
	}), time.Time{})
	if got := where(ps); got["n0"] != 3 || got["n1"] != 3 || ps[7].Why != "no suitable node (insufficient resources on 2 nodes)" {
		t.Error(got, ps[7].Why)
	}
	ps = state(2, nil).Schedule(tasks("web", 3, func(s *api.TaskSpec) {
		s.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 80, PublishMode: "host"}}}
	}), time.Time{})
	if got := where(ps); got["n0"] != 1 || got["n1"] != 1 || ps[2].Why != "no suitable node (host-mode port already in use on 2 nodes)" {
		t.Error(got, ps[2].Why)
	}
	ps = state(2, nil).Schedule(tasks("web", 5, func(s *api.TaskSpec) { s.Placement = &swarm.Placement{MaxReplicas: 2} }), time.Time{})
	if got := where(ps); got["n0"] != 2 || got["n1"] != 2 || ps[4].Why != "no suitable node (max replicas per node limit exceed on 2 nodes)" {
		t.Error(got, ps[4].Why)
	}
}

func TestSpreadsByServiceThenByLoad(t *testing.T) {
	s := state(3, nil)
	for i, task := range tasks("old", 5, nil) { // n0 is crowded
		task.NodeID, task.Status.State = "n0", swarm.TaskStateRunning
		s.SetTask(task.ID, task, time.Time{})
		_ = i
	}
	if got := where(s.Schedule(tasks("one", 1, nil), time.Time{})); got["n0"] != 0 {
		t.Error("one task goes to the crowded node:", got)
	}
	if got := where(s.Schedule(tasks("six", 6, nil), time.Time{})); got["n0"] != 2 || got["n1"] != 2 || got["n2"] != 2 {
		t.Error("a service is not even:", got)
	}
	if got := where(s.Schedule(tasks("four", 4, nil), time.Time{})); got["n0"] != 1 {
		t.Error("the fourth of four goes to the crowded node:", got)
	}
}

func TestSpreadPreferences(t *testing.T) {
	s := state(4, func(i int, n *api.Node) {
		n.Spec.Labels = map[string]string{"zone": []string{"a", "b", "b", "b"}[i], "rack": fmt.Sprint(i)}
	})
	ps := s.Schedule(tasks("web", 12, func(sp *api.TaskSpec) {
		sp.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{
			{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}, {Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.rack"}},
		}}
	}), time.Time{})
	if got := where(ps); got["n0"] != 6 || got["n1"] != 2 || got["n2"] != 2 || got["n3"] != 2 {
		t.Error("half of the tasks belong in each zone:", got)
	}
}

// Without room in a zone its share goes elsewhere.
func TestSpreadGoesOnWhenABranchIsFull(t *testing.T) {
	s := state(2, func(i int, n *api.Node) {
		n.Spec.Labels = map[string]string{"zone": fmt.Sprint(i)}
		n.Description.Resources.NanoCPUs = []int64{1e9, 9e9}[i]
	})
	ps := s.Schedule(tasks("web", 6, func(sp *api.TaskSpec) {
		sp.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e9}}
		sp.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}}
	}), time.Time{})
	if got := where(ps); got["n0"] != 1 || got["n1"] != 5 {
		t.Error(got)
	}
}

func TestFailingNodeComesLast(t *testing.T) {
	s := state(2, nil)
	now := time.Unix(1000, 0)
	for i := range maxFailures {
		task := tasks("web", 1, nil)[0]
		task.ID, task.NodeID, task.Status.State = fmt.Sprint("dead", i), "n0", swarm.TaskStateRunning
		s.SetTask(task.ID, task, now)
		ended := *task
		ended.Status.State = swarm.TaskStateFailed
		s.SetTask(task.ID, &ended, now)
	}
	if got := where(s.Schedule(tasks("web", 3, nil), now)); got["n1"] != 3 {
		t.Error("tasks go where they fail:", got)
	}
	if got := where(s.Schedule(tasks("other", 2, nil), now)); got["n0"] != 1 {
		t.Error("another service's failures count:", got)
	}
	for _, task := range tasks("web", 3, nil) {
		s.SetTask(task.ID, nil, now)
	}
	if got := where(s.Schedule(tasks("web", 2, nil), now.Add(failureMemory))); got["n0"] != 1 {
		t.Error("failures are never forgotten:", got)
	}
}

func TestGenericResources(t *testing.T) {
	s := state(1, func(_ int, n *api.Node) {
		for _, id := range []string{"a", "b", "c"} {
			n.Description.Resources.GenericResources = append(n.Description.Resources.GenericResources, swarm.GenericResource{
				NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: id},
			})
		}
	})
	want := func(sp *api.TaskSpec) {
		sp.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 1}},
		}}}
	}
	var got []string
	ps := s.Schedule(tasks("web", 4, want), time.Time{})
	for _, p := range ps[:3] {
		got = append(got, p.Resources[0].NamedResourceSpec.Value)
	}
	if slices.Sort(got); strings.Join(got, "") != "abc" || ps[3].Why != "no suitable node (insufficient resources on 1 node)" {
		t.Error(got, ps[3])
	}
	s.SetTask("web1", nil, time.Time{})
	if p := s.Schedule(tasks("web", 2, want)[1:], time.Time{})[0]; p.NodeID == "" {
		t.Error("what a removed task had is not free:", p.Why)
	}
}

func TestPreassigned(t *testing.T) {
	s := state(2, func(i int, n *api.Node) {
		if i == 1 {
			n.Spec.Availability = "pause"
		}
	})
	ts := tasks("all", 3, nil)
	ts[0].NodeID, ts[1].NodeID, ts[2].NodeID = "n0", "n1", "n9"
	ps := s.Schedule(ts, time.Time{})
	if ps[0].NodeID != "n0" || ps[1].Why != "no suitable node (1 node not available for new tasks)" || ps[2].Why != "no suitable node (its node is gone)" {
		t.Errorf("%+v", ps)
	}
}

// Nodes come and go in any order; what is counted is always what is there.
func TestStateMatchesTasks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := New()
		all := map[string]*api.Task{}
		spec := func(sp *api.TaskSpec) {
			sp.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 10}}
		}
		for range 80 {
			node := fmt.Sprint("n", rapid.IntRange(0, 3).Draw(rt, "node"))
			id := rapid.IntRange(0, 9).Draw(rt, "task")
			switch rapid.SampledFrom([]byte("+-tttts")).Draw(rt, "step") {
			case '+':
				n := benchNode(0)
				n.ID, n.Description.Resources.MemoryBytes = node, 45
				s.SetNode(n)
			case '-':
				s.RemoveNode(node)
			case 't':
				task := *tasks("web", id+1, spec)[id]
				task.NodeID = node
				task.Status.State = rapid.SampledFrom([]swarm.TaskState{"assigned", "running", "failed", "shutdown"}).Draw(rt, "state")
				task.DesiredState = rapid.SampledFrom([]swarm.TaskState{"running", "shutdown"}).Draw(rt, "desired")
				if old := all[task.ID]; old != nil {
					task.NodeID = old.NodeID // a task never moves
				}
				s.SetTask(task.ID, &task, time.Time{})
				all[task.ID] = &task
			case 's':
				task := tasks("web", id+1, spec)[id]
				if all[task.ID] == nil {
					if p := s.Schedule([]*api.Task{task}, time.Time{})[0]; p.NodeID != "" {
						c := *task
						c.NodeID, c.Status.State = p.NodeID, swarm.TaskStateAssigned
						all[task.ID] = &c
						if m := s.nodes[p.NodeID]; m.memory > 40 && m.memory-10 > 35 {
							rt.Fatalf("%s has %d reserved of 45", p.NodeID, m.memory)
						}
					}
				}
			}
			verify(rt, s, all)
		}
	})
}

func verify(rt *rapid.T, s *State, all map[string]*api.Task) {
	count := map[string]int{}
	stay := map[string]int{}
	for _, t := range all {
		if api.Final(t.Status.State) {
			continue
		}
		if count[t.NodeID]++; !leaving(t) {
			stay[t.NodeID]++
		}
	}
	listed := 0
	for load, nodes := range s.loads {
		for i, n := range nodes {
			listed++
			if n.tasks != load || n.place != i || s.nodes[n.ID] != n {
				rt.Fatalf("%s is at %d, %d but says %d, %d", n.ID, load, i, n.tasks, n.place)
			}
		}
	}
	if listed != len(s.nodes) {
		rt.Fatalf("%d of %d nodes are listed", listed, len(s.nodes))
	}
	for id, n := range s.nodes {
		if n.of("web") != stay[id] {
			rt.Fatalf("%s has %d tasks that stay, counts %d", id, stay[id], n.of("web"))
		}
		if n.tasks != count[id] || n.services["web"] != count[id] || n.memory != int64(10*count[id]) {
			rt.Fatalf("%s has %d tasks, counts %d, %d of the service, %d reserved", id, count[id], n.tasks, n.services["web"], n.memory)
		}
	}
}
