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

// TestJobInvariants lets users, nodes, time and tasks do what they like to jobs,
// and checks that there are never more tasks alive than a job allows, and none
// for slots that have completed; then lets all come to rest, and checks that each
// slot has completed and nothing is left to do.
func TestJobInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.history = int64(rapid.IntRange(0, 5).Draw(rt, "history"))
		c := &jobChaos{world: w, rt: rt, lost: map[string]bool{}}
		for i := range rapid.IntRange(1, 3).Draw(rt, "nodes") {
			w.node(fmt.Sprint("n", i), nil)
		}
		w.setService("job", func(s *swarm.ServiceSpec) {
			s.Mode.ReplicatedJob = &swarm.ReplicatedJob{}
			c.scale(s)
			s.TaskTemplate.RestartPolicy.Delay = new(time.Duration(rapid.IntRange(0, 2).Draw(rt, "delay")) * time.Second)
		})
		w.setService("all", func(s *swarm.ServiceSpec) { s.Mode.GlobalJob = &swarm.GlobalJob{} })
		for range 150 {
			c.step()
			c.check()
		}
		c.rest()
	})
}

type jobChaos struct {
	*world
	rt   *rapid.T
	lost map[string]bool // tasks whose node was down once
}

func (c *jobChaos) scale(s *swarm.ServiceSpec) {
	c.job(s).MaxConcurrent = new(uint64(rapid.IntRange(1, 3).Draw(c.rt, "concurrent")))
	c.job(s).TotalCompletions = new(uint64(rapid.IntRange(0, 5).Draw(c.rt, "completions")))
}

func (c *jobChaos) step() {
	const steps = "PPPPSSSSttttttttttttttwruneeeex" // how often each is done
	switch rapid.SampledFrom([]byte(steps)).Draw(c.rt, "step") {
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
		c.setService("job", c.scale)
	case 'u':
		c.setService(rapid.SampledFrom([]string{"job", "all"}).Draw(c.rt, "service"), func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	case 'x':
		c.setService("job", func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, rapid.Bool().Draw(c.rt, "stopped")) })
	case 'n':
		id := rapid.SampledFrom(sorted(c.nodes)).Draw(c.rt, "node")
		c.setNode(id, func(n *api.Node) {
			n.Status.State = rapid.SampledFrom([]swarm.NodeState{"ready", "down"}).Draw(c.rt, "state")
			n.Spec.Availability = rapid.SampledFrom([]swarm.NodeAvailability{"active", "pause", "drain"}).Draw(c.rt, "availability")
		})
	case 'e':
		if t := c.running(); len(t) > 0 {
			t := rapid.SampledFrom(t).Draw(c.rt, "task")
			c.status(t.ID, rapid.SampledFrom([]swarm.TaskState{"failed", "complete"}).Draw(c.rt, "end"), "")
		}
	}
}

func (c *jobChaos) running() []*api.Task {
	return slices.DeleteFunc(c.sorted(), func(t *api.Task) bool { return t.Status.State != swarm.TaskStateRunning })
}

// check counts what is alive, on nodes that were never thought dead. A job that
// was scaled down meanwhile may still have what it had.
func (c *jobChaos) check() {
	alive := 0
	for _, t := range c.sorted() {
		if n := c.nodes[t.NodeID]; n != nil && n.Status.State == swarm.NodeStateDown {
			c.lost[t.ID] = true
		}
		if t.ServiceID == "job" && c.services["job"].Iteration(t) && api.Rank(t.Status.State) >= api.Rank(swarm.TaskStateAssigned) &&
			!api.Final(t.Status.State) && !c.lost[t.ID] {
			alive++
		}
	}
	if most := int(*c.services["job"].Spec.Mode.ReplicatedJob.MaxConcurrent); alive > most {
		c.dump()
		c.rt.Fatalf("%d tasks of the job are alive, of at most %d", alive, most)
	}
}

// rest heals everything, has all tasks complete, and checks that there is one
// completion per slot.
func (c *jobChaos) rest() {
	for id := range c.nodes {
		c.setNode(id, func(n *api.Node) {
			n.Status.State, n.Spec.Availability = swarm.NodeStateReady, swarm.NodeAvailabilityActive
		})
	}
	if c.services["job"].Stopped() {
		c.setService("job", func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, false) })
	}
	for range 100 {
		c.pass(5 * time.Minute)
		running := c.running()
		for _, t := range running {
			c.status(t.ID, swarm.TaskStateComplete, "")
		}
		if len(running) == 0 {
			break
		}
	}
	type slot struct {
		service, node string
		number        int
	}
	completed := map[slot]int{}
	count := map[string]int{}
	for _, t := range c.sorted() {
		if !api.Final(t.Status.State) {
			c.dump()
			c.rt.Fatalf("%s is %s after all came to rest", t.ID, t.Status.State)
		}
		if !c.services[t.ServiceID].Iteration(t) || t.Status.State != swarm.TaskStateComplete {
			continue
		}
		k := slot{service: t.ServiceID, number: t.Slot}
		if t.Spec.Global {
			k.node = t.NodeID
		}
		if completed[k]++; completed[k] == 1 {
			count[t.ServiceID]++
		} else if !c.lost[t.ID] && !slices.ContainsFunc(c.sorted(), func(o *api.Task) bool { return o.ServiceID == t.ServiceID && o.Slot == t.Slot && c.lost[o.ID] }) {
			c.dump()
			c.rt.Fatalf("slot %v completed twice", k)
		}
	}
	if want := int(*c.services["job"].Spec.Mode.ReplicatedJob.TotalCompletions); count["job"] != want || count["all"] != len(c.nodes) {
		c.dump()
		c.rt.Fatalf("completed %v, want job %d, all %d", count, want, len(c.nodes))
	}
	for _, id := range sorted(c.services) {
		in := c.input(id)
		if out := orchestrator.Plan(in); len(out.Create)+len(out.Desired)+len(out.Orphaned)+len(out.Delete) > 0 || out.Update != nil || !out.Again.IsZero() {
			c.rt.Fatalf("%s never comes to rest: %+v", id, out)
		}
		if o := orchestrator.JobOutcome(in); o.Failed > 0 || o.Completed != count[id] || !o.Over && count[id] > 0 {
			c.rt.Fatalf("%s: outcome %+v, completed %d", id, o, count[id])
		}
	}
}

func (c *jobChaos) dump() {
	for _, t := range c.sorted() {
		c.rt.Logf("%-8s i%d %-5s %-9s %-9s %s", t.ID, t.JobIteration.Index, t.Spec.ContainerSpec.Image, t.NodeID, t.Status.State, t.DesiredState)
	}
	c.rt.Logf("%+v %+v", c.services["job"].JobStatus, *c.services["job"].Spec.Mode.ReplicatedJob.TotalCompletions)
}

// TestBackoffBounds: whatever happens to a slot, its next task never waits less
// than the restart delay, and never longer than the longer of it and five minutes.
func TestBackoffBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		w.node("n1", nil)
		delay := time.Duration(rapid.IntRange(0, 10).Draw(rt, "delay")) * time.Minute / 2
		w.history = int64(rapid.IntRange(-1, 6).Draw(rt, "history"))
		w.setService("web", func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy.Delay = new(delay) })
		w.settle()
		for range rapid.IntRange(1, 20).Draw(rt, "failures") {
			w.pass(time.Duration(rapid.IntRange(0, 600).Draw(rt, "seconds")) * time.Second)
			tasks := slices.DeleteFunc(w.sorted(), func(t *api.Task) bool { return t.Status.State != swarm.TaskStateRunning })
			if len(tasks) == 0 {
				continue
			}
			calm := w.now.Sub(tasks[0].Status.Timestamp) >= 30*time.Second
			w.status(tasks[0].ID, swarm.TaskStateFailed, "")
			w.settle()
			newest := slices.MaxFunc(w.sorted(), func(a, b *api.Task) int { return a.CreatedAt.Compare(b.CreatedAt) })
			if newest.ID == tasks[0].ID {
				newest = w.sorted()[len(w.tasks)-1]
			}
			waits := max(0, newest.NotBefore.Sub(newest.CreatedAt))
			if waits < delay || waits > max(delay, 5*time.Minute) || calm && waits != delay {
				rt.Fatalf("waits %s, with a delay of %s (calm: %v)", waits, delay, calm)
			}
		}
	})
}
