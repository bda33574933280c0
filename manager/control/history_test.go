package control

import (
	"context"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func image(name string) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = name }
}

func TestHistory(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	sp := spec("web")
	sp.Labels = map[string]string{"legion.history": "2"}
	f.create(sp)
	first := f.version("web")
	f.update("web", ServiceOptions{RegistryAuth: "second"}, image("app:2"))
	f.update("web", ServiceOptions{}, func(*swarm.ServiceSpec) {}) // no version
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(5)) })
	h, err := f.ServiceHistory(ctx, "web")
	if err != nil || len(h) != 3 || h[0].Number != 3 || !h[0].Current || h[2].Number != 1 {
		t.Fatalf("%+v, %v", h, err)
	}
	if !slices.Equal(h[0].Changes, []string{"replicas 1 → 5"}) || !slices.Equal(h[1].Changes, []string{"image app:1 → app:2"}) || h[2].Image != "app:1" {
		t.Errorf("%+v", h)
	}

	if err := f.ServiceRollback(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	s := f.service("web")
	if f.version("web") != first || s.Spec.TaskTemplate.ContainerSpec.Image != "app:1" || s.UpdateStatus.State != swarm.UpdateStateRollbackStarted {
		t.Errorf("%+v", s)
	}
	stored := store.Get[*api.Service](f.cfg.Store.View(), s.ID)
	if stored.Number != 4 || stored.RegistryAuth != "" || stored.PreviousRegistryAuth != "second" {
		t.Errorf("%+v", stored)
	}
	refused(t, f.ServiceRollback(ctx, "web", 1), api.NotFound, "no version 1")
	refused(t, f.ServiceRollback(ctx, "web", 4), api.Invalid, "is the present one")
	if err := f.ServiceRemove(ctx, "web"); err != nil || store.Count[*api.ServiceVersion](f.cfg.Store.View()) != 0 {
		t.Error("versions stay when their service has gone", err)
	}
}

func TestPromote(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	f.create(spec("web"))
	refused(t, f.ServicePromote(ctx, "web"), api.Invalid, "has no canaries")
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"legion.update.canary": "1"} })
	refused(t, f.ServicePromote(ctx, "web"), api.Invalid, "not being updated")
	f.setStatus(t, "web", swarm.UpdateStateUpdating)
	if err := f.ServicePromote(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	refused(t, f.ServicePromote(ctx, "web"), api.Invalid, "promoted already")
}

// While an update is under way, a scaling does not take the way back from it.
func TestScaleWhileUpdating(t *testing.T) {
	f := setUp(t)
	f.create(spec("web"))
	f.update("web", ServiceOptions{}, image("app:2"))
	f.setStatus(t, "web", swarm.UpdateStateUpdating)
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(5)) })
	s := f.service("web")
	if p := s.PreviousSpec; p.TaskTemplate.ContainerSpec.Image != "app:1" || *p.Mode.Replicated.Replicas != 5 || s.UpdateStatus == nil {
		t.Errorf("previous %+v", p)
	}
}

func (f *fixture) setStatus(t *testing.T, name string, state swarm.UpdateState) {
	t.Helper()
	if _, err := f.cfg.Store.Update(context.Background(), func(tx *store.Tx) error {
		s, err := f.Control.service(tx, name)
		if err != nil {
			return err
		}
		n := *s
		n.UpdateStatus = &swarm.UpdateStatus{State: state}
		return store.Put(tx, &n)
	}); err != nil {
		t.Fatal(err)
	}
}

// A plan says what would happen, and nothing does.
func TestPlanOfService(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	sp := spec("web")
	sp.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))}
	before := f.cfg.Store.View().Index()
	p, err := f.ServicePlan(ctx, "web", sp)
	if err != nil || p.ID != "" || len(p.Tasks) != 2 || p.Tasks[0].Name != "web.1" || p.Tasks[0].Action != api.PlannedCreate {
		t.Fatalf("%+v, %v", p, err)
	}
	if f.cfg.Store.View().Index() != before {
		t.Error("a plan writes")
	}
	sp.TaskTemplate.ContainerSpec.Image = ""
	if _, err := f.ServicePlan(ctx, "web", sp); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
}

// What runs of a job's former iteration makes room for the next.
func TestPlanOfJob(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	sp := spec("job")
	sp.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: new(uint64(2)), TotalCompletions: new(uint64(2))}}
	made, err := f.ServiceCreate(ctx, sp, ServiceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		s := store.Get[*api.Service](tx, made.ID)
		for slot := range 2 {
			n := &api.Task{
				ID: api.NewID(), ServiceID: s.ID, Slot: slot, SpecVersion: s.SpecVersion, Spec: s.TaskSpec(), DesiredState: swarm.TaskStateComplete,
				JobIteration: &swarm.Version{}, Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
			}
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sp.TaskTemplate.ForceUpdate++
	p, err := f.ServicePlan(ctx, "job", sp)
	if err != nil || len(p.Tasks) != 2 || p.Tasks[0].Action != api.PlannedReplace || p.Tasks[1].Action != api.PlannedReplace {
		t.Errorf("%+v, %v", p, err)
	}
}

// A plan to balance a service moves what the nodes have room for.
func TestPlanToBalance(t *testing.T) {
	const mib = 1 << 20
	for free, moves := range map[int64]int{4 * mib: 0, 16 * mib: 1} {
		f := setUp(t)
		for id, memory := range map[string]int64{"n1": 64 * mib, "n2": free} {
			f.node(id, id, swarm.NodeRoleWorker, swarm.NodeStateReady)
			f.write(func(tx *store.Tx) error {
				n := *store.Get[*api.Node](tx, id)
				n.Description.Resources.MemoryBytes = memory
				return store.Put(tx, &n)
			})
		}
		sp := spec("web")
		sp.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))}
		sp.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 8 * mib}}
		o := f.create(sp)
		for slot, id := range []string{"t1", "t2"} {
			f.task(id, o, func(t *api.Task) { t.Slot, t.NodeID = slot+1, "n1" })
		}
		sp.Labels = map[string]string{api.RebalanceLabel: "true"}
		p, err := f.ServicePlan(t.Context(), "web", sp)
		if err != nil || len(p.Tasks) != moves || p.Unchanged != 2-moves {
			t.Errorf("with %d free bytes: %+v, %v", free, p, err)
		}
	}
}

func TestServiceWithoutName(t *testing.T) {
	f := setUp(t)
	for range 3 {
		made, err := f.ServiceCreate(t.Context(), spec(""), ServiceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if s, err := f.ServiceInspect(t.Context(), made.ID, false); err != nil || s.Spec.Name == "" {
			t.Errorf("%+v, %v", s, err)
		}
	}
}
