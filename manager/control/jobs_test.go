package control

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func jobSpec(name string, concurrent, completions uint64) *swarm.ServiceSpec {
	s := spec(name)
	s.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: &concurrent, TotalCompletions: &completions}
	return s
}

func TestJobDefaults(t *testing.T) {
	f := setUp(t)
	s := spec("job")
	s.Mode.ReplicatedJob = &swarm.ReplicatedJob{}
	if j := f.create(s).Spec.Mode.ReplicatedJob; *j.MaxConcurrent != 1 || *j.TotalCompletions != 1 {
		t.Errorf("%d, %d", *j.MaxConcurrent, *j.TotalCompletions)
	}
	s = spec("three")
	s.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: new(uint64(3))}
	if j := f.create(s).Spec.Mode.ReplicatedJob; *j.TotalCompletions != 3 {
		t.Error(*j.TotalCompletions)
	}
	d, err := f.ServiceInspect(t.Context(), "three", true)
	if err != nil || d.Spec.TaskTemplate.RestartPolicy.Condition != swarm.RestartPolicyConditionOnFailure || d.Spec.UpdateConfig != nil || d.Spec.RollbackConfig != nil {
		t.Errorf("%+v, %v", d.Spec, err)
	}
}

func TestJobRefusals(t *testing.T) {
	for want, breakIt := range map[string]func(*swarm.ServiceSpec){
		"UpdateConfig: update and rollback configuration is not supported for jobs":   func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{} },
		"RollbackConfig: update and rollback configuration is not supported for jobs": func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{} },
		"ReplicatedJob.MaxConcurrent":    func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob.MaxConcurrent = new(uint64(0)) },
		"ReplicatedJob.TotalCompletions": func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob.TotalCompletions = new(uint64(1 << 63)) },
		"Maximum concurrent jobs":        func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob.MaxConcurrent = new(uint64(1 << 63)) },
		"only one service mode":          func(s *swarm.ServiceSpec) { s.Mode.GlobalJob = &swarm.GlobalJob{} },
		"legion.stopped":                 func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"legion.stopped": "perhaps"} },
	} {
		s := jobSpec("job", 2, 4)
		breakIt(s)
		refused(t, ValidateService(s), api.Invalid, want)
	}
	for _, condition := range []string{"", "none", "on-failure", "any"} {
		s := jobSpec("job", 0, 0)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyCondition(condition)}
		if err := ValidateService(s); err != nil {
			t.Errorf("%q: %v", condition, err)
		}
	}
}

func TestJobIterations(t *testing.T) {
	f := setUp(t)
	f.create(jobSpec("job", 1, 2))
	is := func(what string, want uint64) {
		t.Helper()
		s := f.service("job")
		if s.JobStatus == nil || s.JobStatus.JobIteration.Index != want || s.JobStatus.LastExecution.IsZero() || s.UpdateStatus != nil {
			t.Errorf("%s: %+v, %+v, want iteration %d", what, s.JobStatus, s.UpdateStatus, want)
		}
	}
	is("new", 0)
	f.update("job", ServiceOptions{}, func(*swarm.ServiceSpec) {})
	is("nothing changed", 0)
	f.update("job", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	is("force", 1)
	f.update("job", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob.TotalCompletions = new(uint64(5)) })
	is("scaled", 2)
	f.update("job", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"x": "y"} })
	is("labelled", 3)
	f.update("job", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	is("rolled back", 4)
}

// TestStopped: to stop and to start is no version of a service.
func TestStopped(t *testing.T) {
	f := setUp(t)
	f.create(spec("web"))
	f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "app:2" })
	v := f.version("web")
	stop := func(on bool) {
		f.update("web", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, on) })
	}
	stop(true)
	web := f.service("web")
	if f.version("web") != v || web.PreviousSpec.TaskTemplate.ContainerSpec.Image != "app:1" {
		t.Errorf("version %d, previous %+v", f.version("web"), web.PreviousSpec)
	}
	if st := web.UpdateStatus; st == nil || st.State != swarm.UpdateStateCompleted || st.Message != "service is stopped" {
		t.Errorf("%+v", st)
	}
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	if s := (&api.Service{Service: *f.service("web")}); !s.Stopped() || s.Spec.TaskTemplate.ContainerSpec.Image != "app:1" {
		t.Error("a rollback starts a stopped service")
	}
	f.write(func(tx *store.Tx) error {
		s := *store.Get[*api.Service](tx, web.ID)
		s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateCompleted}
		return store.Put(tx, &s)
	})
	stop(false)
	if st := f.service("web").UpdateStatus; st != nil {
		t.Errorf("a start has the status of an old update: %+v", st)
	}
	f.update("web", ServiceOptions{Rollback: "previous"}, func(*swarm.ServiceSpec) {})
	if s := (&api.Service{Service: *f.service("web")}); s.Stopped() {
		t.Error("a rollback stops a service")
	}
}

// ended makes a task of the service in a state, since a minute.
func (f *fixture) ended(id string, s *swarm.Service, slot int, state swarm.TaskState, desired swarm.TaskState) {
	f.task(id, s, func(t *api.Task) {
		t.Slot, t.Status.State, t.DesiredState = slot, state, desired
		t.Status.Timestamp = time.Now().Add(-time.Minute)
		if s.JobStatus != nil {
			t.JobIteration = new(s.JobStatus.JobIteration)
		}
	})
}

// TestProgress: services that will never run all their tasks are told apart from
// those that are not there yet.
func TestProgress(t *testing.T) {
	const running, complete, failed, shutdown = swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateShutdown
	type task struct{ state, desired swarm.TaskState }
	for name, c := range map[string]struct {
		spec  func(*swarm.ServiceSpec)
		tasks []task // one a slot
		want  string
	}{
		"none yet":           {oneShot, []task{{complete, shutdown}}, ""},
		"one still runs":     {oneShot, []task{{complete, shutdown}, {swarm.TaskStateStarting, running}}, ""},
		"not yet looked at":  {oneShot, []task{{complete, shutdown}, {complete, running}}, ""},
		"all run":            {oneShot, []task{{running, running}, {running, running}}, ""},
		"done":               {oneShot, []task{{complete, shutdown}, {complete, shutdown}}, "completed: 2 tasks completed"},
		"one runs on":        {oneShot, []task{{complete, shutdown}, {running, running}}, "completed: 1 tasks completed"},
		"one failed":         {oneShot, []task{{complete, shutdown}, {failed, shutdown}}, "paused: 1 tasks completed, 1 failed"},
		"restarted for ever": {func(*swarm.ServiceSpec) {}, []task{{failed, shutdown}, {failed, shutdown}}, ""},
		"stopped":            {func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(nil, true) }, []task{{shutdown, shutdown}}, "completed: service is stopped"},
		"being stopped":      {func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(nil, true) }, []task{{swarm.TaskStateStarting, shutdown}}, "updating: service is being stopped"},
	} {
		f := setUp(t)
		s := spec("web")
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))}
		c.spec(s)
		web := f.create(s)
		for i, k := range c.tasks {
			f.ended(api.NewID(), web, i+1, k.state, k.desired)
		}
		f.says(name, "web", c.want)
	}
	for name, c := range map[string]struct {
		condition swarm.RestartPolicyCondition
		states    []swarm.TaskState
		want      string
	}{
		"complete":    {"", []swarm.TaskState{complete, complete}, ""},
		"tried again": {"", []swarm.TaskState{complete, failed}, ""},
		"given up":    {"none", []swarm.TaskState{complete, failed}, "paused: job failed: 1 completed, 1 given up"},
		"one to come": {"none", []swarm.TaskState{failed}, ""},
	} {
		f := setUp(t)
		s := jobSpec("job", 2, 2)
		s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: c.condition}
		job := f.create(s)
		for i, k := range c.states {
			desired := swarm.TaskStateShutdown
			if k == complete {
				desired = complete
			}
			f.ended(api.NewID(), job, i, k, desired)
		}
		f.says(name, "job", c.want)
	}
}

func oneShot(s *swarm.ServiceSpec) {
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionNone}
}

func (f *fixture) says(name, service, want string) {
	f.t.Helper()
	got := ""
	if st := f.service(service).UpdateStatus; st != nil {
		got = string(st.State) + ": " + st.Message
	}
	if !strings.HasPrefix(got, want) || want == "" && got != "" {
		f.t.Errorf("%s: %q, want %q", name, got, want)
	}
}

func TestJobStatusAndTasks(t *testing.T) {
	f := setUp(t)
	job := f.create(jobSpec("job", 2, 4))
	f.ended("old", job, 0, swarm.TaskStateComplete, swarm.TaskStateComplete)
	f.update("job", ServiceOptions{}, func(s *swarm.ServiceSpec) { s.TaskTemplate.ForceUpdate++ })
	job = f.service("job")
	f.ended("one", job, 0, swarm.TaskStateComplete, swarm.TaskStateComplete)
	f.ended("two", job, 1, swarm.TaskStateRunning, swarm.TaskStateComplete)
	f.ended("bad", job, 2, swarm.TaskStateFailed, swarm.TaskStateShutdown)
	stopped := spec("stopped")
	stopped.Mode.Global, stopped.Labels = &swarm.GlobalService{}, api.SetStopped(nil, true)
	f.create(stopped)
	f.write(func(tx *store.Tx) error {
		n := &api.Node{}
		n.ID, n.Status.State = "n1", swarm.NodeStateReady
		return store.Create(tx, n)
	})
	list, err := f.ServiceList(t.Context(), nil, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		want := swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 2, CompletedTasks: 1}
		if s.Spec.Name == "stopped" {
			want = swarm.ServiceStatus{DesiredTasks: 1}
		}
		if *s.ServiceStatus != want {
			t.Errorf("%s: %+v, want %+v", s.Spec.Name, *s.ServiceStatus, want)
		}
	}
	for filter, want := range map[string]string{"_up-to-date=true": "bad one two", "desired-state=running": "two", "desired-state=shutdown": "bad old one"} {
		k, v, _ := strings.Cut(filter, "=")
		tasks, err := f.TaskList(t.Context(), api.Filters{k: {v}})
		var got []string
		for _, task := range tasks {
			got = append(got, task.ID)
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", filter, got, err, want)
		}
	}
}

func TestBackoffIsSaid(t *testing.T) {
	f := setUp(t)
	web := f.create(spec("web"))
	for id, delay := range map[string]time.Duration{"long": time.Minute, "plain": 5 * time.Second} {
		f.task(id, web, func(t *api.Task) {
			t.CreatedAt = time.Now()
			t.NotBefore, t.DesiredState, t.Status.State = time.Now().Add(delay), swarm.TaskStateReady, swarm.TaskStateReady
		})
	}
	for id, want := range map[string]string{"long": "back-off: restarts 1m0s after several quick failures", "plain": ""} {
		task, err := f.TaskInspect(t.Context(), id)
		if err != nil || !strings.HasPrefix(task.Status.Err, want) || want == "" && task.Status.Err != "" {
			t.Errorf("%s: %q, %v", id, task.Status.Err, err)
		}
	}
}
