package control

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func TestServiceDefaults(t *testing.T) {
	f := setUp(t)
	s := f.create(spec("web"))
	if r := s.Spec.Mode.Replicated; r == nil || *r.Replicas != 1 {
		t.Error("no mode means one replica:", s.Spec.Mode)
	}
	if s.Spec.TaskTemplate.RestartPolicy != nil {
		t.Error("defaults are written down")
	}
	d, err := f.ServiceInspect(t.Context(), "web", true)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(d.Spec.TaskTemplate.RestartPolicy)
	if want := `{"Condition":"any","Delay":5000000000,"MaxAttempts":0}`; string(got) != want {
		t.Errorf("restart policy %s, want %s", got, want)
	}
	if u := d.Spec.UpdateConfig; u.Parallelism != 1 || u.Monitor != defaultMonitor || u.FailureAction != "pause" || u.Order != "stop-first" {
		t.Errorf("%+v", u)
	}
	if *d.Spec.TaskTemplate.ContainerSpec.StopGracePeriod != defaultGrace {
		t.Error(d.Spec.TaskTemplate.ContainerSpec.StopGracePeriod)
	}
}

func TestServiceUpdate(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	web := f.create(spec("web"))
	v := f.version("web")
	_, err := f.ServiceUpdate(ctx, "web", web.Version.Index-1, &web.Spec, ServiceOptions{})
	refused(t, err, api.OutOfSequence, "update out of sequence")
	if _, err := f.store.Update(ctx, func(tx *store.Tx) error {
		s := *store.Get[*api.Service](tx, web.ID)
		s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateCompleted}
		return store.Put(tx, &s)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ServiceUpdate(ctx, "web", web.Version.Index, &web.Spec, ServiceOptions{}); err != nil {
		t.Errorf("what a manager has written is in nobody's way: %v", err)
	}

	f.update("web", ServiceOptions{}, func(*swarm.ServiceSpec) {})
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(5)) })
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{} })
	if f.version("web") != v {
		t.Error("what does not concern tasks makes them a new spec")
	}
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "app:2" })
	second := f.version("web")
	if second <= v {
		t.Errorf("spec version %d after %d", second, v)
	}
	s := f.service("web")
	if s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:1" || s.UpdateStatus != nil {
		t.Errorf("%+v", s)
	}
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	s = f.service("web")
	if s.Spec.TaskTemplate.ContainerSpec.Image != "app:1" || f.version("web") != v || s.UpdateStatus.State != swarm.UpdateStateRollbackStarted {
		t.Errorf("%+v", s)
	}
	// A rollback can be taken back, and new specs never get an old one's version.
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	if f.version("web") != second {
		t.Error("rolled back to", f.version("web"))
	}
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	if third := f.version("web"); third == v || third == second {
		t.Errorf("spec version %d was given before", third)
	}
}

func TestServiceUpdateRefusals(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	web := f.create(spec("web"))
	try := func(o ServiceOptions, fn func(*swarm.ServiceSpec)) error {
		s := f.service("web")
		fn(&s.Spec)
		_, err := f.ServiceUpdate(ctx, "web", s.Version.Index, &s.Spec, o)
		return err
	}
	refused(t, try(ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} }), api.Unimplemented, "service mode change is not allowed")
	refused(t, try(ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Name = "other" }), api.Unimplemented, "renaming services is not supported")
	refused(t, try(ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {}), api.Invalid, "does not have a previous spec")
	refused(t, try(ServiceOptions{Rollback: "next"}, func(*swarm.ServiceSpec) {}), api.Invalid, "next")
	refused(t, try(ServiceOptions{RegistryAuthFrom: "moon"}, func(*swarm.ServiceSpec) {}), api.Invalid, "moon")
	_, err := f.ServiceUpdate(ctx, "nothere", 1, &web.Spec, ServiceOptions{})
	refused(t, err, api.NotFound, "service nothere not found")
	refused(t, f.ServiceRemove(ctx, "nothere"), api.NotFound, "service nothere not found")
}

func TestRegistryAuth(t *testing.T) {
	f := setUp(t)
	r, err := f.ServiceCreate(t.Context(), spec("web"), ServiceOptions{RegistryAuth: "one"})
	if err != nil {
		t.Fatal(err)
	}
	auth := func() string { return store.Get[*api.Service](f.store.View(), r.ID).RegistryAuth }
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	if auth() != "one" {
		t.Error("an update without a login lost it:", auth())
	}
	f.update("web", ServiceOptions{RegistryAuth: "two"}, func(*swarm.ServiceSpec) {})
	f.update("web", ServiceOptions{RegistryAuthFrom: "previous-spec"}, func(*swarm.ServiceSpec) {})
	if auth() != "one" {
		t.Error("previous-spec gives", auth())
	}
}

func TestUpdateStatusAcrossUpdates(t *testing.T) {
	for state, kept := range map[swarm.UpdateState]bool{
		swarm.UpdateStateUpdating: true, swarm.UpdateStateRollbackStarted: true, swarm.UpdateStatePaused: false, swarm.UpdateStateCompleted: false,
	} {
		f := setUp(t)
		web := f.create(spec("web"))
		f.write(func(tx *store.Tx) error {
			s := *store.Get[*api.Service](tx, web.ID)
			s.UpdateStatus = &swarm.UpdateStatus{State: state}
			return store.Put(tx, &s)
		})
		f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode.Replicated.Replicas = new(uint64(3)) })
		if got := f.service("web").UpdateStatus != nil; got != kept {
			t.Errorf("scaled while %s: status kept is %v", state, got)
		}
	}
}

func TestPublishedPorts(t *testing.T) {
	f := setUp(t)
	published := func(name string, p swarm.PortConfig) *swarm.ServiceSpec {
		s := spec(name)
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{p}}
		return s
	}
	a := f.create(published("a", swarm.PortConfig{TargetPort: 80, PublishedPort: 8080}))
	if p := a.Endpoint.Ports[0]; p.PublishedPort != 8080 || p.Protocol != "tcp" || p.PublishMode != "ingress" {
		t.Errorf("%+v", p)
	}
	_, err := f.ServiceCreate(t.Context(), published("b", swarm.PortConfig{TargetPort: 81, PublishedPort: 8080}), ServiceOptions{})
	refused(t, err, api.Invalid, "port '8080' is already in use by service 'a' ("+a.ID+") as an ingress port")
	_, err = f.ServiceCreate(t.Context(), published("b", swarm.PortConfig{TargetPort: 81, PublishedPort: 8080, PublishMode: "host"}), ServiceOptions{})
	refused(t, err, api.Invalid, "as an ingress port")
	f.create(published("h", swarm.PortConfig{TargetPort: 81, PublishedPort: 9090, PublishMode: "host"}))
	f.create(published("h2", swarm.PortConfig{TargetPort: 81, PublishedPort: 9090, PublishMode: "host"}))
	_, err = f.ServiceCreate(t.Context(), published("b", swarm.PortConfig{TargetPort: 81, PublishedPort: 9090}), ServiceOptions{})
	refused(t, err, api.Invalid, "as a host-published port")
	c := f.create(published("c", swarm.PortConfig{TargetPort: 80}))
	if c.Endpoint.Ports[0].PublishedPort != 30000 {
		t.Error(c.Endpoint.Ports)
	}
	f.update("c", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	if got := f.service("c").Endpoint.Ports[0].PublishedPort; got != 30000 {
		t.Error("an update moved the port to", got)
	}
}

func TestNetworksAreNamedByID(t *testing.T) {
	f := setUp(t)
	s := spec("web")
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "host"}}
	web := f.create(s)
	if got := web.Spec.TaskTemplate.Networks[0].Target; got != "id-of-host" {
		t.Error(got)
	}
	if s.TaskTemplate.Networks[0].Target != "host" {
		t.Error("the caller's spec was changed")
	}
	s = spec("x")
	s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "nothere"}}
	_, err := f.ServiceCreate(t.Context(), s, ServiceOptions{})
	refused(t, err, api.Invalid, "network nothere not found")
}

func TestServiceStatusAndTasks(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	three := spec("web")
	three.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(3))}
	web := f.create(three)
	f.task("aaa1", web, func(t *api.Task) { t.NodeID = "n1" })
	f.task("aab2", web, func(t *api.Task) { t.Status.State = swarm.TaskStatePending })
	f.task("aab3", web, func(t *api.Task) { t.DesiredState, t.Status.State = swarm.TaskStateShutdown, swarm.TaskStateFailed })
	all := spec("all")
	all.Mode.Global = &swarm.GlobalService{}
	f.task("glob", f.create(all), func(t *api.Task) { t.NodeID = "n1" })
	list, err := f.ServiceList(ctx, api.Filters{}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		want := swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 3}
		if s.Spec.Name == "all" {
			want.DesiredTasks = 1
		}
		if *s.ServiceStatus != want {
			t.Errorf("%s: %+v", s.Spec.Name, *s.ServiceStatus)
		}
	}
	for want, filters := range map[int][]api.Filters{
		4: {{}},
		3: {{"service": {"web"}}, {"desired-state": {"running"}}},
		2: {{"service": {"web"}, "desired-state": {"running"}}, {"node": {"n1"}}, {"id": {"aab"}}},
		1: {{"desired-state": {"shutdown"}}, {"service": {"web"}, "node": {"n1"}}, {"name": {"web.1.aaa1"}}},
		0: {{"up-to-date": {"false"}}, {"_up-to-date": {"0"}}, {"desired-state": {"ready", "REMOVE"}}},
	} {
		for _, fl := range filters {
			if got, err := f.TaskList(ctx, fl); err != nil || len(got) != want {
				t.Errorf("%v: %d tasks, %v; want %d", fl, len(got), err, want)
			}
		}
	}
	for _, kind := range []string{"service", "node"} {
		_, err := f.TaskList(ctx, api.Filters{kind: {"nothere"}})
		refused(t, err, api.NotFound, kind+" nothere not found")
	}
	// Labels replace no task; another image does.
	for want, change := range map[int]func(*swarm.ServiceSpec){
		3: func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"x": "y"} },
		0: func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "other:1" },
	} {
		old, err := f.ServiceInspect(ctx, "web", false)
		if err != nil {
			t.Fatal(err)
		}
		next := spec("web")
		next.Mode = old.Spec.Mode
		change(next)
		if _, err := f.ServiceUpdate(ctx, "web", old.Version.Index, next, ServiceOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err := f.TaskList(ctx, api.Filters{"service": {"web"}, "_up-to-date": {"true"}}); err != nil || len(got) != want {
			t.Errorf("%d tasks are up to date, %v; want %d", len(got), err, want)
		}
	}
	for _, name := range []string{"aaa1", "aaa", "web.1.aaa1"} {
		if got, err := f.TaskInspect(ctx, name); err != nil || got.ID != "aaa1" {
			t.Error(name, err)
		}
	}
	_, err = f.TaskInspect(ctx, "aab")
	refused(t, err, api.Invalid, "task aab is ambiguous (2 matches found)")
	_, err = f.TaskInspect(ctx, "zzz")
	refused(t, err, api.NotFound, "task zzz not found")
}

func benchServices(b *testing.B, n int) *fixture {
	f := setUp(b)
	for i := range n {
		s := spec(fmt.Sprintf("service-%04d", i))
		s.Labels = map[string]string{"com.docker.stack.namespace": "stack"}
		s.TaskTemplate.ContainerSpec.Env = []string{"A=1", "B=2"}
		s.EndpointSpec = &swarm.EndpointSpec{Mode: "vip"}
		f.create(s)
	}
	return f
}

// BenchmarkServiceList200 is what GET /services does: list, with status, and
// JSON.
func BenchmarkServiceList200(b *testing.B) {
	f := benchServices(b, 200)
	for b.Loop() {
		l, err := f.ServiceList(b.Context(), api.Filters{}, true)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := json.Marshal(l); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTaskList10000(b *testing.B) {
	f := setUp(b)
	web := f.create(spec("web"))
	for i := 0; i < 10_000; i += 1000 {
		f.write(func(tx *store.Tx) error {
			o := store.Get[*api.Service](tx, web.ID)
			for j := range 1000 {
				t := &api.Task{ID: api.NewID(), ServiceID: web.ID, Slot: i + j, SpecVersion: o.SpecVersion, Spec: o.TaskSpec(), DesiredState: "running"}
				if err := store.Create(tx, t); err != nil {
					return err
				}
			}
			return nil
		})
	}
	b.Run("list", func(b *testing.B) {
		for b.Loop() {
			if l, err := f.TaskList(b.Context(), api.Filters{}); err != nil || len(l) != 10_000 {
				b.Fatal(len(l), err)
			}
		}
	})
	b.Run("list and json", func(b *testing.B) {
		for b.Loop() {
			l, err := f.TaskList(b.Context(), api.Filters{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := json.Marshal(l); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkServiceCreate(b *testing.B) {
	f := setUp(b)
	for b.Loop() {
		if _, err := f.ServiceCreate(b.Context(), spec("s"+api.NewID()), ServiceOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// What a rollback is judged by comes after it, though a clock was set back.
func TestRollbackBeginsAfterTheTasksThereAre(t *testing.T) {
	f := setUp(t)
	web := f.create(spec("web"))
	later := time.Now().Add(48 * time.Hour)
	f.task("t", web, func(t *api.Task) { t.CreatedAt = later })
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "app:2" })
	begins := func(how string) {
		t.Helper()
		s, err := f.ServiceInspect(t.Context(), "web", false)
		if err != nil || s.UpdateStatus == nil || !s.UpdateStatus.StartedAt.After(later) {
			t.Errorf("%s: %+v, %v", how, s.UpdateStatus, err)
		}
	}
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	begins("to the previous version")
	if err := f.ServiceRollback(t.Context(), "web", 2); err != nil {
		t.Fatal(err)
	}
	begins("to a version")
	a, b := &swarm.SecretSpec{Data: []byte("a")}, &swarm.SecretSpec{Data: []byte("b")}
	a.Name, b.Name = "a", "b"
	f.write(func(tx *store.Tx) error {
		s := &api.Secret{Secret: swarm.Secret{ID: "old", Spec: *a}}
		s.CreatedAt = later
		return store.Create(tx, s)
	})
	id, err := f.SecretCreate(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if s := store.Get[*api.Secret](f.store.View(), id); !s.CreatedAt.After(later) {
		t.Errorf("the second secret was made at %v, the first at %v", s.CreatedAt, later)
	}
}

// A spread over what no node has is taken, with a warning: Docker ignores it.
func TestWarnsOfVainSpread(t *testing.T) {
	f := setUp(t)
	s := spec("web")
	s.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{
		{Spread: &swarm.SpreadOver{SpreadDescriptor: "spread=node.role.manager"}}, {Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}},
	}}
	want := []string{`the placement preference has no effect: nothing can be spread over "spread=node.role.manager": want node.labels.NAME or engine.labels.NAME`}
	r, err := f.ServiceCreate(t.Context(), s, ServiceOptions{})
	if err != nil || !slices.Equal(r.Warnings, want) {
		t.Fatalf("%+v, %v", r, err)
	}
	p, err := f.ServicePlan(t.Context(), "web", s)
	if err != nil || !slices.Equal(p.Notes, want) {
		t.Errorf("%+v, %v", p, err)
	}
	got, err := f.ServiceInspect(t.Context(), "web", false)
	if err != nil || got.Spec.TaskTemplate.Placement.Preferences[0].Spread.SpreadDescriptor != "spread=node.role.manager" {
		t.Fatalf("%+v, %v", got, err)
	}
	u, err := f.ServiceUpdate(t.Context(), "web", got.Version.Index, s, ServiceOptions{})
	if err != nil || !slices.Equal(u.Warnings, want) {
		t.Errorf("%+v, %v", u, err)
	}
	s.TaskTemplate.Placement = nil
	if got, err = f.ServiceInspect(t.Context(), "web", false); err != nil {
		t.Fatal(err)
	}
	if u, err := f.ServiceUpdate(t.Context(), "web", got.Version.Index, s, ServiceOptions{}); err != nil || len(u.Warnings) > 0 {
		t.Errorf("%+v, %v", u, err)
	}
	if got, err = f.ServiceInspect(t.Context(), "web", false); err != nil {
		t.Fatal(err)
	}
	if u, err := f.ServiceUpdate(t.Context(), "web", got.Version.Index, nil, ServiceOptions{Rollback: "previous"}); err != nil || len(u.Warnings) > 0 {
		t.Errorf("%+v, %v", u, err)
	}
}
