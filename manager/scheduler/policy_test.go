package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// labelled are tasks of a service with labels of ours, given without their prefix.
func labelled(service string, n int, labels map[string]string, fn func(s *api.TaskSpec)) []*api.Task {
	return tasks(service, n, func(sp *api.TaskSpec) {
		sp.ServiceLabels = map[string]string{}
		for k, v := range labels {
			sp.ServiceLabels["legion.schedule."+k] = v
		}
		if fn != nil {
			fn(sp)
		}
	})
}

func memory(gigabytes int64) func(s *api.TaskSpec) {
	return func(s *api.TaskSpec) {
		s.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: gigabytes << 30}}
	}
}

func roomy(gigabytes ...int64) func(i int, n *api.Node) {
	return func(i int, n *api.Node) { n.Description.Resources.MemoryBytes = gigabytes[i%len(gigabytes)] << 30 }
}

// runs has the state see tasks run on a node.
func runs(s *State, node string, ts []*api.Task) {
	for _, t := range ts {
		c := *t
		c.NodeID, c.Status.State, c.DesiredState = node, swarm.TaskStateRunning, swarm.TaskStateRunning
		s.SetTask(c.ID, &c, time.Time{})
	}
}

func TestBinPack(t *testing.T) {
	s := state(3, roomy(4))
	runs(s, "n1", tasks("old", 1, memory(1)))
	got := where(s.Schedule(labelled("web", 6, map[string]string{"strategy": "binpack"}, memory(1)), time.Time{}))
	if got["n1"] != 3 || got["n0"] != 3 {
		t.Error("the fullest node comes first, then the next:", got)
	}
	got = where(s.Schedule(labelled("none", 2, map[string]string{"strategy": "binpack"}, nil), time.Time{}))
	if got["n1"] != 2 {
		t.Error("tasks that reserve nothing go to the fullest:", got)
	}
	got = where(s.Schedule(labelled("zones", 2, map[string]string{"strategy": "binpack"}, func(sp *api.TaskSpec) {
		sp.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.hostname"}}}}
	}), time.Time{}))
	if len(got) != 2 {
		t.Error("preferences come before the strategy:", got)
	}
}

func TestRandom(t *testing.T) {
	place := func(service string) map[string]int {
		return where(state(4, nil).Schedule(labelled(service, 400, map[string]string{"strategy": "random"}, nil), time.Time{}))
	}
	got := place("web")
	for n, tasks := range got {
		if tasks < 60 || tasks > 140 || n == "" {
			t.Errorf("%d of 400 tasks on %s of 4", tasks, n)
		}
	}
	if !maps.Equal(got, place("web")) {
		t.Error("the same state gives another answer")
	}
	if maps.Equal(got, place("web2")) && maps.Equal(got, place("web3")) {
		t.Error("all services go the same way")
	}
}

func TestAffinity(t *testing.T) {
	for name, c := range map[string]struct {
		rules string
		want  map[string]int // of four tasks
		why   string         // of the last
	}{
		"with":                    {rules: "service==db", want: map[string]int{"n0": 2, "n1": 2}},
		"in any case":             {rules: "service==DB", want: map[string]int{"n0": 2, "n1": 2}},
		"apart":                   {rules: "service!=db", want: map[string]int{"n2": 4}},
		"with one, not the other": {rules: "service==db, service!=cache", want: map[string]int{"n0": 4}},
		"not met": {
			rules: "service==nosuch", want: map[string]int{"": 4},
			why: "no suitable node (affinity to service nosuch not satisfied on 3 nodes)",
		},
		"met nowhere": {
			rules: "service!=db,service==cache", want: map[string]int{"": 4},
			why: "no suitable node (anti-affinity to service db not satisfied on 2 nodes; affinity to service cache not satisfied on 1 node)",
		},
		"to itself":          {rules: "service==web", want: map[string]int{"n2": 4}},
		"to itself, with db": {rules: "service==web,service==db", want: map[string]int{"n0": 4}},
		"apart from itself": {rules: "service!=web", want: map[string]int{"n0": 1, "n1": 1, "n2": 1, "": 1},
			why: "no suitable node (anti-affinity to service web not satisfied on 3 nodes)"},
		"rather with":        {rules: "service==~db", want: map[string]int{"n0": 2, "n1": 2}},
		"rather apart":       {rules: "service!=~db", want: map[string]int{"n2": 4}},
		"rather with nobody": {rules: "service==~nosuch", want: map[string]int{"n2": 2, "n0": 1, "n1": 1}},
		"rather with itself": {rules: "service==~web", want: map[string]int{"n2": 4}},
	} {
		s := state(3, nil)
		runs(s, "n0", tasks("db", 1, nil))
		runs(s, "n1", tasks("db", 2, nil)[1:])
		runs(s, "n1", tasks("cache", 1, nil))
		ps := s.Schedule(labelled("web", 4, map[string]string{"affinity": c.rules}, nil), time.Time{})
		if got := where(ps); !maps.Equal(got, c.want) || ps[3].Why != c.why {
			t.Errorf("%s: got %v %q, want %v %q", name, got, ps[3].Why, c.want, c.why)
		}
	}
}

// A service that is gone is gone from the rules, also with its node.
func TestAffinityForgets(t *testing.T) {
	s := state(2, nil)
	db := tasks("db", 2, nil)
	runs(s, "n0", db[:1])
	runs(s, "n1", db[1:])
	web := func() map[string]int {
		return where(s.Schedule(labelled("web", 1, map[string]string{"affinity": "service==db"}, nil), time.Time{}))
	}
	s.SetTask("db0", nil, time.Time{})
	if got := web(); got["n1"] != 1 {
		t.Error(got)
	}
	s.RemoveNode("n1")
	if got := web(); got[""] != 1 || len(s.names) != 0 {
		t.Error(got, s.names)
	}
}

func victims(ps []Placement) []string {
	var out []string
	for _, p := range ps {
		for _, v := range p.Evict {
			out = append(out, v.ID)
		}
	}
	slices.Sort(out)
	return out
}

func TestPreempt(t *testing.T) {
	s := state(2, roomy(4))
	priority := func(p int) map[string]string { return map[string]string{"priority": fmt.Sprint(p)} }
	runs(s, "n0", labelled("mid", 1, priority(5), memory(4)))
	runs(s, "n1", labelled("small", 2, priority(-1), memory(1)))
	runs(s, "n1", labelled("large", 1, priority(-1), memory(2)))
	high := labelled("high", 3, priority(10), memory(2))
	ps := s.Schedule(high[:1], time.Time{})
	if got := victims(ps); !slices.Equal(got, []string{"large0"}) {
		t.Fatalf("as few as needed have to leave, of the lowest priority: %v", got)
	}
	if want := "waiting for room on node " + benchNode(1).Description.Hostname + ": 1 task of lower priority must leave"; ps[0].Why != want {
		t.Error(ps[0].Why)
	}
	asked := *s.tasks.get("large0")
	asked.Evicted = evictedBy(high[0])
	s.SetTask("large0", &asked, time.Time{})
	// What it waits for is nobody else's.
	ps = s.Schedule(high[1:2], time.Time{})
	if got := victims(ps); !slices.Equal(got, []string{"small0", "small1"}) {
		t.Error(got)
	}
	s.SetTask("large0", nil, time.Time{})
	if p := s.Schedule(tasks("late", 1, memory(1)), time.Time{})[0]; p.NodeID != "" || len(p.Evict) > 0 {
		t.Errorf("it takes room that is promised: %+v", p)
	}
	if p := s.Schedule(high[:1], time.Time{})[0]; p.NodeID != "n1" {
		t.Errorf("%+v", p)
	}
	// The last can only go where a task of priority 5 is.
	if got := victims(s.Schedule(high[2:], time.Time{})); !slices.Equal(got, []string{"mid0"}) {
		t.Error(got)
	}
	// Who does not want it any more gives the room back.
	gone := *high[2]
	gone.DesiredState = swarm.TaskStateShutdown
	if !s.SetTask(gone.ID, &gone, time.Time{}) {
		t.Error("nobody hears of the room that is free again")
	}
	s.SetTask("mid0", nil, time.Time{})
	if p := s.Schedule(tasks("late", 1, memory(4)), time.Time{})[0]; p.NodeID != "n0" {
		t.Errorf("%+v", p)
	}
}

// Only room is taken: constraints, other nodes' state and the like stay as they are.
func TestPreemptOnlyRoom(t *testing.T) {
	port := func(s *api.TaskSpec) {
		s.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 80, PublishMode: "host"}}}
	}
	gpu := func(s *api.TaskSpec) {
		s.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{
			{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 1}},
		}}}
	}
	for name, c := range map[string]struct {
		low, high func(s *api.TaskSpec)
		evicts    bool
	}{
		"host port": {port, port, true},
		"generic":   {gpu, gpu, true},
		"other":     {port, gpu, false},
		"constraint": {port, func(s *api.TaskSpec) {
			port(s)
			s.Placement = &swarm.Placement{Constraints: []string{"node.labels.a==b"}}
		}, false},
	} {
		s := state(1, func(_ int, n *api.Node) {
			n.Description.Resources.GenericResources = []swarm.GenericResource{{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "x"}}}
		})
		low := s.Schedule(tasks("low", 1, c.low), time.Time{})[0]
		if low.NodeID == "" {
			t.Fatal(name, low.Why)
		}
		p := s.Schedule(labelled("high", 1, map[string]string{"priority": "1"}, c.high), time.Time{})[0]
		if got := len(p.Evict) > 0; got != c.evicts {
			t.Errorf("%s: evicts %v: %+v", name, got, p)
		}
	}
}

// A global service's task has room made on its own node alone, nobody goes where the group
// keeps failing, and who leaves anyhow need not be told.
func TestPreemptWhere(t *testing.T) {
	now := time.Unix(1000, 0)
	high := func() []*api.Task { return labelled("high", 1, map[string]string{"priority": "1"}, memory(2)) }
	s := state(2, roomy(2))
	runs(s, "n0", tasks("low", 1, memory(2)))
	runs(s, "n1", tasks("low", 2, memory(2))[1:])
	global := high()
	global[0].NodeID = "n1"
	if got := victims(s.Schedule(global, now)); !slices.Equal(got, []string{"low1"}) {
		t.Error(got)
	}
	s.SetTask("high0", nil, now)
	for range maxFailures {
		s.nodes["n0"].fail(groupKey(high()[0]), now)
	}
	ended := *s.tasks.get("low1")
	ended.DesiredState = swarm.TaskStateShutdown
	s.SetTask("low1", &ended, now)
	if p := s.Schedule(high(), now)[0]; len(p.Evict) > 0 || s.promises["high0"].task.NodeID != "n1" {
		t.Errorf("%+v", p)
	}
}

// TestPreemption lets tasks of all priorities come and go in a small swarm. At every moment no
// node has more reserved than it has, also counting what is promised; only lower
// ones have to leave, and no more than needed; at rest nobody waits for room
// that a lower one has, and it comes to rest.
func TestPreemption(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := state(rapid.IntRange(1, 3).Draw(rt, "nodes"), roomy(6, 4, 3))
		pending := map[string]*api.Task{}
		running := map[string]*api.Task{}
		made := 0
		settle := func() {
			for round := 0; ; round++ {
				if round > 100 {
					rt.Fatal("evictions never end")
				}
				batch := slices.SortedFunc(maps.Values(pending), older)
				done := true
				for _, p := range s.Schedule(batch, time.Time{}) {
					if p.NodeID != "" {
						c := *p.Task
						c.NodeID, c.Status.State = p.NodeID, swarm.TaskStateRunning
						running[c.ID] = &c
						s.SetTask(c.ID, &c, time.Time{})
						delete(pending, c.ID)
						done = false
					}
					for _, v := range p.Evict {
						if v.Spec.Priority() >= p.Task.Spec.Priority() {
							rt.Fatalf("%s of %d has to leave for %s of %d", v.ID, v.Spec.Priority(), p.Task.ID, p.Task.Spec.Priority())
						}
						s.SetTask(v.ID, nil, time.Time{})
						delete(running, v.ID)
						made++
						c := *v
						c.ID, c.NodeID, c.Status.State = fmt.Sprint("again", made), "", swarm.TaskStatePending
						pending[c.ID] = &c
						done = false
					}
				}
				for _, n := range s.nodes {
					over := n.memory - n.Description.Resources.MemoryBytes
					for _, p := range s.promises {
						if p.task.NodeID == n.ID {
							over -= p.task.Spec.Resources.Reservations.MemoryBytes
						}
					}
					if over > 0 {
						rt.Fatalf("%s has %d too much reserved", n.ID, over)
					}
				}
				if done {
					break
				}
			}
			if len(s.promises) > 0 {
				rt.Fatalf("promises that nobody keeps: %v", s.promises)
			}
		}
		for range 25 {
			if rapid.IntRange(0, 3).Draw(rt, "step") > 0 || len(running) == 0 {
				made++
				p, gb := rapid.IntRange(-2, 2).Draw(rt, "priority"), rapid.IntRange(1, 4).Draw(rt, "memory")
				task := labelled(fmt.Sprint("s", made), 1, map[string]string{"priority": fmt.Sprint(p)}, memory(int64(gb)))[0]
				task.Status.State, task.DesiredState = swarm.TaskStatePending, swarm.TaskStateRunning
				pending[task.ID] = task
			} else {
				id := rapid.SampledFrom(slices.Sorted(maps.Keys(running))).Draw(rt, "ends")
				s.SetTask(id, nil, time.Time{})
				delete(running, id)
			}
			settle()
			for _, task := range pending {
				g := s.newGroup(task)
				for n, lower := range s.below(g, nil) {
					if e := g.eviction(n, lower, s.going(), time.Time{}); e != nil {
						rt.Fatalf("%s waits though %d tasks of %s could leave for it", task.ID, len(e.victims), n.ID)
					}
				}
			}
		}
	})
}
