package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/store"
)

// testNode is a node's membership over an executor that only pretends.
type testNode struct {
	*swarmNode
	cluster
	fake   *exectest.Fake
	starts atomic.Int64 // of containers
	t      testing.TB
}

func newTestNode(t testing.TB, script func(*api.Task) exectest.Script) *testNode {
	t.Helper()
	n := &testNode{t: t}
	n.fake = exectest.NewFake(func(task *api.Task) exectest.Script {
		var s exectest.Script
		if script != nil {
			s = script(task)
		}
		s.Start = func(context.Context) error { n.starts.Add(1); return nil }
		return s
	})
	n.open(t.TempDir())
	return n
}

// open begins what a daemon would begin on the folder.
func (n *testNode) open(dir string) {
	ctx, cancel := context.WithCancel(context.Background())
	n.swarmNode = &swarmNode{
		dir: dir, exec: n.fake, log: slog.New(slog.NewTextHandler(n.t.Output(), nil)),
		removeTasks: func(context.Context) error { return nil },
	}
	n.cluster = cluster{n.swarmNode}
	n.resume(ctx)
	n.t.Cleanup(func() { n.end(nil); cancel() })
}

func (n *testNode) init() {
	n.t.Helper()
	if _, err := n.SwarmInit(n.t.Context(), &swarm.InitRequest{ListenAddr: freePort(n.t), AdvertiseAddr: "127.0.0.1"}); err != nil {
		n.t.Fatal(err)
	}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only held the port
	return l.Addr().String()
}

// until waits for a condition on the tasks.
func (n *testNode) until(what string, cond func([]*api.Task) bool) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	r, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	view, w := r.store.Watch(store.KindTask)
	defer w.Close()
	for {
		tasks := slices.Collect(store.List[*api.Task](view))
		if cond(tasks) {
			return
		}
		if _, err := w.Next(ctx); err != nil {
			for _, t := range tasks {
				n.t.Logf("%s wanted %s is %s %s %s", t.Name(), t.DesiredState, t.Status.State, t.Status.Message, t.Status.Err)
			}
			n.t.Fatalf("never: %s: %v", what, err)
		}
		view = r.store.View()
	}
}

func alive(count int) func([]*api.Task) bool {
	return func(tasks []*api.Task) bool {
		n := 0
		for _, t := range tasks {
			if t.DesiredState == swarm.TaskStateRunning {
				if t.Status.State != swarm.TaskStateRunning {
					return false
				}
				n++
			} else if !api.Final(t.Status.State) {
				return false
			}
		}
		return n == count
	}
}

func spec(name string, replicas uint64) *swarm.ServiceSpec {
	s := &swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}}}
	s.Name = name
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: new(10 * time.Millisecond)}
	return s
}

func (n *testNode) create(s *swarm.ServiceSpec) {
	n.t.Helper()
	if _, err := n.ServiceCreate(n.t.Context(), s, dockerapi.ServiceOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// change updates a service.
func (n *testNode) change(name string, fn func(*swarm.ServiceSpec)) {
	n.t.Helper()
	s, err := n.ServiceInspect(n.t.Context(), name, false)
	if err != nil {
		n.t.Fatal(err)
	}
	fn(&s.Spec)
	if _, err := n.ServiceUpdate(n.t.Context(), name, s.Version.Index, &s.Spec, dockerapi.ServiceOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func TestServiceLife(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("web", 3))
	n.until("three run", alive(3))
	n.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(20))} })
	n.until("twenty run", alive(20))
	n.change("web", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(2))} })
	n.until("two are left, and no trace of the rest", func(ts []*api.Task) bool { return alive(2)(ts) && len(ts) == 2 })

	dir := n.dir
	n.end(nil)
	n.open(dir)
	n.until("two run after a restart", alive(2))
	if starts := n.starts.Load(); starts != 20 {
		t.Errorf("containers were started %d times; want 20: a restart of the daemon starts nothing", starts)
	}
	if err := n.ServiceRemove(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	n.until("nothing is left", func(ts []*api.Task) bool { return len(ts) == 0 })
	if err := n.SwarmLeave(t.Context(), false); !strings.Contains(err.Error(), "Removing the last manager") {
		t.Errorf("leave without force: %v", err)
	}
	if err := n.SwarmLeave(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if state, err := n.state(); state != swarm.LocalNodeStateInactive || err != nil {
		t.Errorf("after leave: %s, %v", state, err)
	}
	n.init()
}

func TestRestartPolicy(t *testing.T) {
	n := newTestNode(t, func(task *api.Task) exectest.Script {
		return exectest.Script{Exits: task.Spec.ServiceName != "steady", Code: map[string]int{"bad": 7}[task.Spec.ServiceName]}
	})
	n.init()
	s := spec("bad", 1)
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "on-failure", Delay: new(time.Millisecond), MaxAttempts: new(uint64(2))}
	n.create(s)
	once := spec("once", 1)
	once.TaskTemplate.RestartPolicy.Condition = "none"
	n.create(once)
	failed := func(ts []*api.Task) (bad, complete int) {
		for _, t := range ts {
			switch {
			case t.Status.State == swarm.TaskStateFailed && strings.Contains(t.Status.Err, "non-zero exit (7)"):
				bad++
			case t.Status.State == swarm.TaskStateComplete:
				complete++
			}
		}
		return bad, complete
	}
	n.until("one try and two restarts", func(ts []*api.Task) bool { b, c := failed(ts); return b == 3 && c == 1 })
	// Something else that makes all services be planned again changes nothing.
	n.create(spec("steady", 2))
	n.change("once", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"a": "b"} })
	n.until("no more tries", func(ts []*api.Task) bool { b, c := failed(ts); return b == 3 && c == 1 && len(ts) == 6 })
}

func TestUpdateReplacesOnlyWhatChanged(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	n.create(spec("web", 4))
	n.until("four run", alive(4))
	n.change("web", func(s *swarm.ServiceSpec) {
		s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:2"}
		s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Monitor: time.Millisecond}
	})
	isNew := func(ts []*api.Task) bool {
		for _, t := range ts {
			if t.DesiredState == swarm.TaskStateRunning && t.Spec.ContainerSpec.Image != "app:2" {
				return false
			}
		}
		return alive(4)(ts)
	}
	n.until("four run app:2", isNew)
	n.untilUpdate("web", swarm.UpdateStateCompleted)
	starts := n.starts.Load()
	n.change("web", func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"x": "y"} })
	n.until("still four", isNew)
	if got := n.starts.Load(); got != starts {
		t.Errorf("a label on the service started %d containers", got-starts)
	}
}

func (n *testNode) untilUpdate(name string, state swarm.UpdateState) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	defer cancel()
	r, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	_, w := r.store.Watch(store.KindService)
	defer w.Close()
	for {
		s, err := n.ServiceInspect(ctx, name, false)
		if err != nil {
			n.t.Fatal(err)
		}
		if s.UpdateStatus != nil && s.UpdateStatus.State == state {
			return
		}
		if _, err := w.Next(ctx); err != nil {
			n.t.Fatalf("update status is %+v; want %s: %v", s.UpdateStatus, state, err)
		}
	}
}

func TestPendingSaysWhy(t *testing.T) {
	n := newTestNode(t, nil)
	n.init()
	s := spec("nofit", 1)
	s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.none==x"}}
	n.create(s)
	n.until("the reason", func(ts []*api.Task) bool {
		return len(ts) == 1 && ts[0].Status.Err == "no suitable node (scheduling constraints not satisfied on 1 node)"
	})
	list, err := n.NodeList(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	list[0].Spec.Labels = map[string]string{"none": "x"}
	if err := n.NodeUpdate(t.Context(), list[0].ID, list[0].Version.Index, &list[0].Spec); err != nil {
		t.Fatal(err)
	}
	n.until("it runs", alive(1))
}

func TestServiceLogs(t *testing.T) {
	n := newTestNode(t, func(*api.Task) exectest.Script { return exectest.Script{Lines: []string{"one\n", "two\n"}} })
	n.init()
	n.create(spec("talk", 2))
	n.until("both run", alive(2))
	lines := 0
	_, err := n.ServiceLogs(t.Context(), "talk", engine.LogsOptions{Stdout: true, Stderr: true, Tail: -1}, func(m dockerapi.TaskLog) error {
		if m.TaskID == "" || m.NodeID == "" {
			return errors.New("a line without its task")
		}
		lines++
		return nil
	})
	if err != nil || lines != 4 {
		t.Fatalf("%d lines, %v; want 4", lines, err)
	}
}

func TestNotAManager(t *testing.T) {
	n := newTestNode(t, nil)
	_, err := n.ServiceList(t.Context(), nil, false)
	if !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "not a swarm manager") {
		t.Fatalf("got %v", err)
	}
}

// Where there is no swarm to recover, a forced one is a new one, as with Docker.
func TestForceNewClusterOfNothing(t *testing.T) {
	n := newTestNode(t, nil)
	if _, err := n.SwarmInit(t.Context(), &swarm.InitRequest{ForceNewCluster: true, ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	n.create(spec("web", 1))
	n.until("one task", alive(1))
}
