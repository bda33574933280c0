package manager

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/store"
)

// agents does for all nodes what their tasks' desired states say, as loop of a
// manager. It counts what it did.
type agents struct {
	store *store.Store
	steps int
}

func (a *agents) Run(ctx context.Context) error {
	for {
		view, w := a.store.Watch(store.KindTask)
		var err error
		for t := range store.List[*api.Task](view) {
			err = errors.Join(err, a.step(ctx, t.ID))
		}
		for err == nil {
			var changes []store.Change
			if changes, err = w.Next(ctx); err != nil {
				break
			}
			for _, c := range changes {
				err = errors.Join(err, a.step(ctx, c.ID))
			}
		}
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return err
		}
	}
}

// step takes a task as far as it may go.
func (a *agents) step(ctx context.Context, id string) error {
	_, err := a.store.Update(ctx, func(tx *store.Tx) error {
		old := store.Get[*api.Task](tx, id)
		if old == nil || api.Rank(old.Status.State) < api.Rank(swarm.TaskStateAssigned) || api.Final(old.Status.State) {
			return nil
		}
		t := *old
		if t.Status.State = t.DesiredState; t.DesiredState == swarm.TaskStateRemove {
			t.Status.State = swarm.TaskStateShutdown
		}
		if api.Rank(t.Status.State) <= api.Rank(old.Status.State) {
			return nil
		}
		t.Status.Timestamp = time.Now()
		a.steps++
		return store.Put(tx, &t)
	})
	return err
}

type cluster struct {
	*control.Control
	t      *testing.T
	store  *store.Store
	agents *agents
	end    func()
}

// newCluster is a leader with all its loops and nodes that obey.
func newCluster(t *testing.T, nodes int) *cluster {
	s := newStore(t)
	c := &cluster{t: t, store: s, agents: &agents{store: s}, Control: control.New(control.Config{Store: s})}
	for i := range nodes {
		c.update(func(tx *store.Tx) error {
			n := &api.Node{Role: swarm.NodeRoleWorker}
			n.ID, n.Spec.Availability, n.Status.State = fmt.Sprint("node", i), "active", "ready"
			return store.Create(tx, n)
		})
	}
	c.lead()
	return c
}

func (c *cluster) lead() {
	l := follower()
	l.set(true, 1)
	c.end = run(c.t, l, c.store, c.agents.Run)
	synctest.Wait()
}

func (c *cluster) update(fn func(tx *store.Tx) error) {
	c.t.Helper()
	if _, err := c.store.Update(c.t.Context(), fn); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) create(name string, replicas int) {
	c.t.Helper()
	s := &swarm.ServiceSpec{}
	s.Name, s.Mode.Replicated = name, &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	if _, err := c.ServiceCreate(c.t.Context(), s, control.ServiceOptions{}); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// change updates a service's spec.
func (c *cluster) change(name string, fn func(*swarm.ServiceSpec)) {
	c.t.Helper()
	s, err := c.ServiceInspect(c.t.Context(), name, false)
	if err != nil {
		c.t.Fatal(err)
	}
	spec := s.Spec
	container := *spec.TaskTemplate.ContainerSpec
	spec.TaskTemplate.ContainerSpec = &container
	fn(&spec)
	if _, err := c.ServiceUpdate(c.t.Context(), name, s.Version.Index, &spec, control.ServiceOptions{}); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func (c *cluster) running(image string) (tasks []*api.Task) {
	for t := range store.List[*api.Task](c.store.View()) {
		if t.Status.State == swarm.TaskStateRunning && t.Spec.ContainerSpec.Image == image {
			tasks = append(tasks, t)
		}
	}
	return tasks
}

func TestServiceLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer func() { c.end() }()
		began := time.Now()
		c.create("web", 7)
		if n := len(c.running("app:1")); n != 7 || time.Since(began) != 0 {
			t.Fatalf("%d tasks run after %s", n, time.Since(began))
		}
		perNode := map[string]int{}
		for _, task := range c.running("app:1") {
			perNode[task.NodeID]++
			if task.Status.Message == "" && task.Slot == 0 {
				t.Errorf("%+v", task)
			}
		}
		for id, n := range perNode {
			if n < 2 || n > 3 {
				t.Errorf("%s has %d of 7 tasks", id, n)
			}
		}
		// One dies: its slot is taken again after the delay, with its history.
		victim := c.running("app:1")[0]
		c.update(func(tx *store.Tx) error {
			dead := *store.Get[*api.Task](tx, victim.ID)
			dead.Status = swarm.TaskStatus{State: swarm.TaskStateFailed, Err: "task: non-zero exit (137)", Timestamp: time.Now()}
			return store.Put(tx, &dead)
		})
		synctest.Wait()
		if n := len(c.running("app:1")); n != 6 {
			t.Errorf("%d run within the restart delay", n)
		}
		time.Sleep(5*time.Second + time.Millisecond)
		synctest.Wait()
		if n := len(c.running("app:1")); n != 7 {
			t.Errorf("%d run after the restart delay", n)
		}
		c.change("web", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "app:2" })
		time.Sleep(time.Minute)
		synctest.Wait()
		if n, old := len(c.running("app:2")), len(c.running("app:1")); n != 7 || old != 0 {
			t.Errorf("after the update %d new and %d old tasks run", n, old)
		}
		if s, _ := c.ServiceInspect(t.Context(), "web", false); s.UpdateStatus == nil || s.UpdateStatus.State != swarm.UpdateStateCompleted {
			t.Errorf("%+v", s.UpdateStatus)
		}
		if err := c.ServiceRemove(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := store.Count[*api.Task](c.store.View()); n != 0 {
			t.Errorf("%d tasks of a removed service are left", n)
		}
	})
}

// A manager that starts again, or another that takes over, changes nothing where
// all is as it should be.
func TestNewLeaderDisturbsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer func() { c.end() }()
		c.create("web", 5)
		c.create("nofit", 1)
		c.change("nofit", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname==x"}}
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		before, steps := c.store.View(), c.agents.steps
		index := before.Index()
		c.end()
		c.lead()
		time.Sleep(time.Minute)
		synctest.Wait()
		if c.store.View().Index() != index || c.agents.steps != steps {
			t.Errorf("a new leader wrote %d entries, nodes did %d things", c.store.View().Index()-index, c.agents.steps-steps)
			for x := range store.List[*api.Task](c.store.View()) {
				if x.Version.Index > index {
					t.Errorf("was %+v\nis %+v", store.Get[*api.Task](before, x.ID), x)
				}
			}
		}
	})
}

// What happened while nobody led is made good by who leads next.
func TestStartDoesWhatEventsWould(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer func() { c.end() }()
		c.create("web", 4)
		c.create("gone", 2)
		c.end()
		if err := c.ServiceRemove(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		c.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(6)) })
		c.update(func(tx *store.Tx) error {
			n := *store.Get[*api.Node](tx, "node0")
			n.Status.State = swarm.NodeStateDown
			return store.Put(tx, &n)
		})
		c.lead()
		time.Sleep(time.Minute)
		synctest.Wait()
		n := 0
		for _, task := range c.running("app:1") {
			if task.NodeID == "node1" && task.DesiredState == swarm.TaskStateRunning {
				n++
			}
		}
		if n != 6 {
			t.Errorf("%d of 6 tasks run on the node that is left", n)
		}
		for task := range store.List[*api.Task](c.store.View()) {
			if task.Spec.ServiceName == "gone" && task.NodeID == "node1" {
				t.Errorf("%s of a removed service is %s", task.ID, task.Status.State)
			}
		}
	})
}

// settle waits until the loops have done all that they were told of: what comes
// thick they are told of a little later.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func TestManyServicesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		defer func() { c.end() }()
		for i := range 100 {
			c.create(fmt.Sprint("s", i), 3)
		}
		settle()
		if n := len(c.running("app:1")); n != 300 {
			t.Errorf("%d of 300 tasks run", n)
		}
		for i := range 100 {
			if err := c.ServiceRemove(t.Context(), fmt.Sprint("s", i)); err != nil {
				t.Fatal(err)
			}
		}
		settle()
		if n := store.Count[*api.Task](c.store.View()); n != 0 {
			t.Errorf("%d tasks are left", n)
		}
	})
}

// Services whose specs do not fit in one transaction together are planned one by
// one, instead of ending the epoch over and over.
func TestLargeSpecs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer func() { c.end() }()
		c.end()
		label := strings.Repeat("x", 1<<20-100)
		for i := range 12 {
			s := &swarm.ServiceSpec{}
			s.Name, s.TaskTemplate.ContainerSpec = fmt.Sprint("large", i), &swarm.ContainerSpec{Image: "app:1", Labels: map[string]string{"x": label}}
			if _, err := c.ServiceCreate(t.Context(), s, control.ServiceOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		c.lead()
		settle()
		if n := len(c.running("app:1")); n != 12 {
			t.Errorf("%d of 12 tasks run", n)
		}
	})
}

// A service that could not be balanced is, once others leave the room that it takes.
func TestBalancedWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const gib = 1 << 30
		c := newCluster(t, 2)
		defer func() { c.end() }()
		for id, role := range map[string]swarm.NodeRole{"node0": swarm.NodeRoleWorker, "node1": swarm.NodeRoleManager} {
			c.update(func(tx *store.Tx) error {
				n := *store.Get[*api.Node](tx, id)
				n.Role, n.Description.Resources.MemoryBytes = role, 4*gib
				return store.Put(tx, &n)
			})
		}
		reserve := func(bytes int64) *swarm.ResourceRequirements {
			return &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: bytes}}
		}
		make := func(name string, replicas int, change func(s *swarm.ServiceSpec)) {
			t.Helper()
			s := &swarm.ServiceSpec{}
			s.Name, s.Mode.Replicated = name, &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
			s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: name}
			change(s)
			if _, err := c.ServiceCreate(t.Context(), s, control.ServiceOptions{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		make("full", 1, func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = reserve(4 * gib)
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==manager"}}
		})
		make("web", 4, func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = reserve(gib)
			s.Labels = map[string]string{api.RebalanceLabel: "true"}
		})
		on := func() map[string]int {
			synctest.Wait()
			n := map[string]int{}
			for _, task := range c.running("web") {
				n[task.NodeID]++
			}
			return n
		}
		time.Sleep(time.Minute)
		if n := on(); n["node0"] != 4 || n["node1"] != 0 {
			t.Fatal(n)
		}
		if err := c.ServiceRemove(t.Context(), "full"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := on(); n["node0"] != 2 || n["node1"] != 2 {
			t.Errorf("there is room, and tasks are on %v", n)
		}
	})
}
