package orchestrator_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/orchestrator"
)

// TestInvariants lets users, nodes and time do what they like to a swarm, one
// random step of anybody at a time, and checks after each what must always hold;
// then lets all come to rest and checks that there is just what was asked for.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		c := &chaos{world: w, rt: rt, lost: map[string]bool{}, startFirst: rapid.Bool().Draw(rt, "start first"), clocks: rapid.Bool().Draw(rt, "clocks")}
		for i := range rapid.IntRange(1, 3).Draw(rt, "nodes") {
			w.node(fmt.Sprint("n", i), nil).Description.Resources.MemoryBytes = 8 << 30
		}
		balanced := rapid.Bool().Draw(rt, "rebalance")
		w.setService("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(rapid.IntRange(0, 4).Draw(rt, "replicas")))}
			s.TaskTemplate.RestartPolicy.Delay = new(time.Duration(rapid.IntRange(0, 2).Draw(rt, "delay")) * time.Second)
			s.UpdateConfig.Parallelism = uint64(rapid.IntRange(0, 3).Draw(rt, "parallelism"))
			s.UpdateConfig.FailureAction = rapid.SampledFrom([]swarm.FailureAction{"pause", "continue", "rollback"}).Draw(rt, "action")
			if c.startFirst {
				s.UpdateConfig.Order, s.RollbackConfig.Order = "start-first", "start-first"
			}
			w.set(s, "memory", "1")
			if balanced {
				w.set(s, "rebalance", "true")
			}
		})
		if rapid.Bool().Draw(rt, "high") {
			w.setService("high", func(s *swarm.ServiceSpec) {
				s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1))}
				w.set(s, "memory", "2")
				w.set(s, "priority", "10")
			})
		}
		w.setService("all", func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} })
		w.settle()
		for range 150 {
			c.step()
			c.check()
		}
		c.rest()
	})
}

// jumps are by how much clocks are set.
var jumps = []time.Duration{-time.Second, -time.Minute, -time.Hour, -48 * time.Hour, time.Second, time.Minute, time.Hour, 48 * time.Hour}

type chaos struct {
	*world
	rt         *rapid.T
	startFirst bool
	clocks     bool            // they are set now and then
	lost       map[string]bool // tasks whose node was down once
}

// step does one thing: a plan, a placement, one task's next state, or a blow of
// fate.
func (c *chaos) step() {
	steps := "PPPPSSSSttttttttttttttwrunee" // how often each is done
	if c.clocks {
		steps += "c"
	}
	switch rapid.SampledFrom([]byte(steps)).Draw(c.rt, "step") {
	case 'c':
		c.setClock(rapid.SampledFrom(jumps).Draw(c.rt, "jump"))
	case 'P':
		c.plan()
	case 'S':
		c.place()
	case 't':
		if tasks := c.sorted(); len(tasks) > 0 {
			c.world.step(rapid.SampledFrom(tasks).Draw(c.rt, "task"))
		}
	case 'w':
		c.now = c.now.Add(time.Duration(rapid.IntRange(1, 6000).Draw(c.rt, "ms")) * time.Millisecond)
	case 'r':
		c.setService("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(rapid.IntRange(0, 4).Draw(c.rt, "replicas")))}
		})
	case 'u':
		c.setService("web", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Image = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(c.rt, "image")
		})
	case 'n':
		id := rapid.SampledFrom(sorted(c.nodes)).Draw(c.rt, "node")
		c.setNode(id, func(n *api.Node) {
			n.Status.State = rapid.SampledFrom([]swarm.NodeState{"ready", "down"}).Draw(c.rt, "state")
			n.Spec.Availability = rapid.SampledFrom([]swarm.NodeAvailability{"active", "pause", "drain"}).Draw(c.rt, "availability")
			n.Description.Resources.MemoryBytes = int64(rapid.IntRange(1, 8).Draw(c.rt, "memory")) << 30
		})
	case 'e':
		running := slices.DeleteFunc(c.sorted(), func(t *api.Task) bool { return t.Status.State != swarm.TaskStateRunning })
		if len(running) > 0 {
			t := rapid.SampledFrom(running).Draw(c.rt, "task")
			c.status(t.ID, rapid.SampledFrom([]swarm.TaskState{"failed", "complete"}).Draw(c.rt, "end"), "")
		}
	}
}

// check holds at every moment. That states only go forward is checked where
// they change.
func (c *chaos) check() {
	type slot struct {
		service, node string
		number        int
	}
	live := map[slot]int{}
	for _, t := range c.tasks {
		if n := c.nodes[t.NodeID]; n != nil && n.Status.State == swarm.NodeStateDown {
			c.lost[t.ID] = true // it was given up, and may run there after all
		}
		if api.Rank(t.Status.State) < api.Rank(swarm.TaskStateStarting) || api.Final(t.Status.State) || c.lost[t.ID] {
			continue
		}
		k := slot{service: t.ServiceID, number: t.Slot}
		if t.Spec.Global {
			k.node = t.NodeID
		}
		live[k]++
		if live[k] > 1 && !c.startFirst {
			c.dump()
			c.rt.Fatalf("two tasks of slot %v run at once", k)
		}
	}
}

// rest heals everything, lets time pass, and checks that there is exactly what
// the services ask for, and nothing left to do.
func (c *chaos) rest() {
	for id := range c.nodes {
		c.setNode(id, func(n *api.Node) {
			n.Status.State, n.Spec.Availability = swarm.NodeStateReady, swarm.NodeAvailabilityActive
			n.Description.Resources.MemoryBytes = 8 << 30
		})
	}
	if st := c.services["web"].UpdateStatus; st != nil && st.State == swarm.UpdateStatePaused {
		s := *c.services["web"]
		s.UpdateStatus = nil
		c.services["web"] = &s
	}
	c.settle()
	c.pass(10 * time.Minute)
	got := map[string]int{}
	for _, t := range c.tasks {
		switch {
		case t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning:
			got[t.ServiceID]++
			if s := c.services[t.ServiceID]; t.Spec.ContainerSpec.Image != s.Spec.TaskTemplate.ContainerSpec.Image && !paused(s) {
				c.dump()
				c.rt.Fatalf("%s still has image %s after an update to %s", t.ID, t.Spec.ContainerSpec.Image, s.Spec.TaskTemplate.ContainerSpec.Image)
			}
		case !api.Final(t.Status.State):
			c.dump()
			c.rt.Fatalf("%s is %s, to be %s, after all came to rest", t.ID, t.Status.State, t.DesiredState)
		}
	}
	want := int(*c.services["web"].Spec.Mode.Replicated.Replicas)
	c.balanced()
	if got["web"] != want || got["all"] != len(c.nodes) {
		c.dump()
		c.rt.Fatalf("running %v, want web %d, all %d", got, want, len(c.nodes))
	}
	for _, id := range sorted(c.services) {
		out := orchestrator.Plan(c.input(id))
		if len(out.Create)+len(out.Desired)+len(out.Orphaned)+len(out.Delete) > 0 || out.Update != nil {
			c.rt.Fatalf("%s never comes to rest: %+v", id, out)
		}
	}
}

// balanced checks that a service which asks for it is even, half an hour later.
func (c *chaos) balanced() {
	if s := c.services["web"]; s.Spec.Labels[api.RebalanceLabel] == "" || paused(s) || s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStateUpdating {
		return
	}
	c.pass(30 * time.Minute)
	on := map[string]int{}
	for _, t := range c.tasks {
		if t.ServiceID == "web" && t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning {
			on[t.NodeID]++
		}
	}
	for _, a := range sorted(c.nodes) {
		for _, b := range sorted(c.nodes) {
			if on[a]-on[b] > 1 {
				c.dump()
				c.rt.Fatalf("unbalanced: %v", on)
			}
		}
	}
}

func paused(s *api.Service) bool {
	return s.UpdateStatus != nil && (s.UpdateStatus.State == swarm.UpdateStatePaused || s.UpdateStatus.State == swarm.UpdateStateRollbackPaused)
}

func (c *chaos) dump() {
	for _, t := range c.sorted() {
		c.rt.Logf("%-8s v%d %-5s %-9s %-9s %s", t.ID, t.SpecVersion, t.Spec.ContainerSpec.Image, t.NodeID, t.Status.State, t.DesiredState)
	}
	c.rt.Logf("%+v", c.services["web"].UpdateStatus)
}

// TestAvailability: during a rolling update of a healthy service, and while its
// nodes are drained one after the other, there are never fewer tasks running than
// its parallelism and order allow.
func TestAvailability(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		for i := range rapid.IntRange(2, 4).Draw(rt, "nodes") {
			w.node(fmt.Sprint("n", i), nil)
		}
		replicas := rapid.IntRange(1, 12).Draw(rt, "replicas")
		parallelism := rapid.IntRange(1, 4).Draw(rt, "parallelism")
		startFirst := rapid.Bool().Draw(rt, "start first")
		w.setService("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
			s.UpdateConfig.Parallelism, s.RollbackConfig.Parallelism = uint64(parallelism), uint64(parallelism)
			s.UpdateConfig.Delay = time.Duration(rapid.IntRange(0, 3).Draw(rt, "delay")) * time.Second
			if startFirst {
				s.UpdateConfig.Order, s.RollbackConfig.Order = "start-first", "start-first"
			}
		})
		w.settle()
		least := replicas - parallelism
		if startFirst {
			least = replicas
		}
		images := 0
		steps := "PPSSttttttttttwud"
		if rapid.Bool().Draw(rt, "clocks") {
			steps = "PPSSttttttttttwuc" // the patience with tasks that leave a drained node is a time
		}
		for range 600 {
			switch rapid.SampledFrom([]byte(steps)).Draw(rt, "step") {
			case 'P':
				w.plan()
			case 'S':
				w.place()
			case 't':
				w.step(rapid.SampledFrom(w.sorted()).Draw(rt, "task"))
			case 'w':
				w.now = w.now.Add(time.Second)
			case 'c':
				w.setClock(rapid.SampledFrom(jumps).Draw(rt, "jump"))
			case 'u': // a new version, once the last one is out
				if st := w.services["web"].UpdateStatus; images == 0 || st != nil && st.State == swarm.UpdateStateCompleted {
					images++
					w.setService("web", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = fmt.Sprint("v", images) })
				}
			case 'd': // drains a node if that leaves one, or has a drained one back
				id := rapid.SampledFrom(sorted(w.nodes)).Draw(rt, "node")
				w.drainOne(id)
			}
			running := 0
			for _, t := range w.tasks {
				if t.Status.State == swarm.TaskStateRunning {
					running++
				}
			}
			if running < least {
				for _, t := range w.sorted() {
					rt.Logf("%-8s v%d %-9s %-9s %-9s %s", t.ID, t.SpecVersion, t.NodeID, t.Status.State, t.DesiredState, t.CreatedAt.Format("04:05"))
				}
				rt.Fatalf("%d tasks run, of %d and with parallelism %d", running, replicas, parallelism)
			}
		}
	})
}

// drainOne drains a node if another one stays, or has it back.
func (w *world) drainOne(id string) {
	active := 0
	for _, n := range w.nodes {
		if n.Spec.Availability == swarm.NodeAvailabilityActive {
			active++
		}
	}
	w.setNode(id, func(n *api.Node) {
		switch {
		case n.Spec.Availability == swarm.NodeAvailabilityDrain:
			n.Spec.Availability = swarm.NodeAvailabilityActive
		case active > 1:
			n.Spec.Availability = swarm.NodeAvailabilityDrain
		}
	})
}

// TestSlots: where a service was as it should be and then something happened in one
// slot, planning that slot alone does what planning the service does.
func TestSlots(t *testing.T) {
	local := 0
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		for i := range 3 {
			w.node(fmt.Sprint("n", i), nil)
		}
		w.setService("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(3))}
			s.TaskTemplate.RestartPolicy.Delay = new(time.Duration(rapid.IntRange(0, 2).Draw(rt, "delay")) * time.Second)
			s.TaskTemplate.RestartPolicy.MaxAttempts = new(uint64(rapid.IntRange(0, 3).Draw(rt, "attempts")))
			s.TaskTemplate.RestartPolicy.Condition = rapid.SampledFrom([]swarm.RestartPolicyCondition{"any", "none", "on-failure"}).Draw(rt, "condition")
		})
		w.setService("all", func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} })
		w.history = 2
		w.settle()
		for range 60 {
			was := map[string]bool{}
			for _, id := range sorted(w.services) {
				was[id] = orchestrator.Plan(w.input(id)).Quiet
			}
			task := rapid.SampledFrom(w.sorted()).Draw(rt, "task")
			if rapid.Bool().Draw(rt, "ends") && task.Status.State == swarm.TaskStateRunning {
				w.status(task.ID, rapid.SampledFrom([]swarm.TaskState{"failed", "complete"}).Draw(rt, "end"), "")
			} else {
				w.step(task)
			}
			if in := w.input(task.ServiceID); was[task.ServiceID] {
				whole := orchestrator.Plan(in)
				in.Tasks = slices.DeleteFunc(in.Tasks, func(o *api.Task) bool {
					return task.Spec.Global && o.NodeID != task.NodeID || o.Slot != task.Slot
				})
				part, ok := orchestrator.PlanSlots(in)
				if ok {
					local++
				}
				if ok && digest(&whole) != digest(&part) {
					w.change(task.ID, func(*api.Task) {})
					rt.Fatalf("after %s: whole %s, part %s", task.ID, digest(&whole), digest(&part))
				}
			}
			w.plan()
			w.place()
			if rapid.Bool().Draw(rt, "time") {
				w.now = w.now.Add(time.Second)
			}
		}
	})
	if local < 100 {
		t.Errorf("only %d plans were local", local)
	}
}

// digest is what a plan changes.
func digest(o *orchestrator.Output) string {
	s := fmt.Sprint(o.Desired, o.Delete, o.Update != nil)
	for _, t := range o.Create {
		s += fmt.Sprint(t.Slot, t.NodeID, t.DesiredState, t.NotBefore)
	}
	return s
}

// TestBoundedPlans: plans that may not be large come to the same end.
func TestBoundedPlans(t *testing.T) {
	w := newWorld(t)
	w.node("n1", nil)
	w.setService("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(95))} })
	plans := 0
	for {
		in := w.input("web")
		in.MaxChanges = 10
		out := orchestrator.Plan(in)
		if n := len(out.Create) + len(out.Desired) + len(out.Orphaned) + len(out.Delete); n > 11 {
			t.Fatalf("%d changes in a plan of at most 10", n)
		}
		plans++
		w.apply(&out)
		if out.Again.IsZero() {
			break
		}
	}
	if len(w.tasks) != 95 || plans != 10 {
		t.Errorf("%d tasks after %d plans", len(w.tasks), plans)
	}
}
