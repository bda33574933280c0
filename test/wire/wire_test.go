package wire

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/dispatcher"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

func TestTaskLife(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	n := m.untilNode(t, w.id, swarm.NodeStateReady)
	if n.Description.Hostname != "fake" || n.Status.Addr != "127.0.0.1" {
		t.Errorf("node = %+v", n.Node)
	}
	m.create(t, m.task("task1", w.id))
	task := m.untilState(t, "task1", swarm.TaskStateRunning)
	if task.Status.Message != "started" || task.Status.ContainerStatus == nil || task.Status.ContainerStatus.PID == 0 {
		t.Errorf("status = %+v", task.Status)
	}
	w.fake.Kill("task1", 7)
	task = m.untilState(t, "task1", swarm.TaskStateFailed)
	if task.Status.Err != "task: non-zero exit (7)" || task.Status.ContainerStatus.ExitCode != 7 {
		t.Errorf("status = %+v", task.Status)
	}
	m.create(t, m.task("task2", w.id))
	m.untilState(t, "task2", swarm.TaskStateRunning)
	m.desire(t, "task2", swarm.TaskStateShutdown)
	m.untilState(t, "task2", swarm.TaskStateShutdown)
	m.update(t, func(tx *store.Tx) error { return store.Delete[*api.Task](tx, "task2") })
	eventually(t, "task2 removed from the node", func() bool {
		ids, _ := w.fake.Adopted(t.Context())
		return len(ids) == 1 && ids[0] == "task1"
	})
}

func TestReadyGate(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	task := m.task("task1", w.id)
	task.DesiredState = swarm.TaskStateReady
	m.create(t, task)
	m.untilState(t, "task1", swarm.TaskStateReady)
	if w.fake.Starts("task1") != 0 {
		t.Fatal("started before it should")
	}
	m.desire(t, "task1", swarm.TaskStateRunning)
	m.untilState(t, "task1", swarm.TaskStateRunning)
}

func TestRejected(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, func(*api.Task) exectest.Script {
		return exectest.Script{Prepare: func(context.Context) error { return fmt.Errorf("No such image: image") }}
	})
	w.run(t)
	m.create(t, m.task("task1", w.id))
	if s := m.untilState(t, "task1", swarm.TaskStateRejected).Status; s.Err != "No such image: image" || s.Message != "preparing" {
		t.Errorf("status = %+v", s)
	}
}

func TestManyAtOnce(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	m.untilNode(t, w.id, swarm.NodeStateReady)
	var tasks []*api.Task
	for i := range 200 {
		tasks = append(tasks, m.task(fmt.Sprintf("task%d", i), w.id))
	}
	began := time.Now()
	m.create(t, tasks...)
	for _, task := range tasks {
		m.untilState(t, task.ID, swarm.TaskStateRunning)
	}
	t.Logf("200 tasks RUNNING after %v", time.Since(began))
	began = time.Now()
	w.fake.Kill("task5", 1)
	m.untilState(t, "task5", swarm.TaskStateFailed)
	t.Logf("a killed task FAILED in the store after %v", time.Since(began))
}

// An agent that ends leaves its tasks running; the next one takes them up, tells
// how those ended that did meanwhile, and starts none a second time.
func TestAgentRestart(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	stop := w.run(t)
	m.create(t, m.task("stays", w.id), m.task("ends", w.id))
	m.untilState(t, "stays", swarm.TaskStateRunning)
	m.untilState(t, "ends", swarm.TaskStateRunning)
	check(t, stop())
	if got := w.fake.Running(); len(got) != 2 {
		t.Fatalf("running after the agent ended: %v", got)
	}
	w.fake.Kill("ends", 3)
	w.run(t)
	if s := m.untilState(t, "ends", swarm.TaskStateFailed).Status; s.Err != "task: non-zero exit (3)" {
		t.Errorf("status = %+v", s)
	}
	if w.fake.Starts("stays") != 1 || w.fake.Starts("ends") != 1 {
		t.Error("a task was started twice")
	}
}

// Without any manager, an agent goes on from disk.
func TestNoManager(t *testing.T) {
	m, stopManager := newManager(t, options{})
	w := m.worker(t, nil)
	stop := w.run(t)
	m.create(t, m.task("task1", w.id), m.task("gone", w.id))
	m.untilState(t, "task1", swarm.TaskStateRunning)
	m.untilState(t, "gone", swarm.TaskStateRunning)
	check(t, stop())
	stopManager()
	stop = w.run(t)
	w.fake.Kill("task1", 9)
	eventually(t, "the end is on disk", func() bool { return w.fake.Starts("task1") == 1 && len(w.fake.Running()) == 1 })
	check(t, stop())
	// The manager comes back, without one of the tasks.
	m.update(t, func(tx *store.Tx) error { return store.Delete[*api.Task](tx, "gone") })
	m2, _ := newManager(t, options{addr: m.addr, store: m.store, root: m.root})
	w.run(t)
	m2.untilState(t, "task1", swarm.TaskStateFailed)
	eventually(t, "the forgotten task ended", func() bool { return len(w.fake.Running()) == 0 })
}

// A manager that comes back finds its nodes again, and statuses are not lost.
func TestManagerRestart(t *testing.T) {
	m, stopManager := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	m.create(t, m.task("task1", w.id))
	m.untilState(t, "task1", swarm.TaskStateRunning)
	stopManager()
	w.fake.Kill("task1", 5)
	m2, _ := newManager(t, options{addr: m.addr, store: m.store, root: m.root})
	m2.untilState(t, "task1", swarm.TaskStateFailed)
	m2.untilNode(t, w.id, swarm.NodeStateReady)
}

func TestNodeDown(t *testing.T) {
	m, _ := newManager(t, options{heartbeat: 100 * time.Millisecond})
	w := m.worker(t, nil)
	stop := w.run(t)
	m.untilNode(t, w.id, swarm.NodeStateReady)
	check(t, stop())
	if n := m.untilNode(t, w.id, swarm.NodeStateDown); !strings.Contains(n.Status.Message, "no heart-beat") {
		t.Errorf("message = %q", n.Status.Message)
	}
	w.run(t)
	if n := m.untilNode(t, w.id, swarm.NodeStateReady); n.Status.Message != "" {
		t.Errorf("message = %q", n.Status.Message)
	}
}

func TestNodeRemoved(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	m.untilNode(t, w.id, swarm.NodeStateReady)
	m.update(t, func(tx *store.Tx) error { return store.Delete[*api.Node](tx, w.id) })
	if err := <-w.ended; !api.Is(err, api.NotFound) {
		t.Errorf("Run = %v, want NotFound", err)
	}
}

func TestSecrets(t *testing.T) {
	m, _ := newManager(t, options{})
	w := m.worker(t, nil)
	w.run(t)
	secret := &api.Secret{Secret: swarm.Secret{ID: "secret1", Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: "s"}, Data: []byte("x")}}}
	m.update(t, func(tx *store.Tx) error { return store.Create(tx, secret) })
	task := m.task("task1", w.id)
	task.Spec.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "secret1", SecretName: "s"}}
	m.create(t, task)
	m.untilState(t, "task1", swarm.TaskStateRunning)
}

// join asks for a certificate as a new node does.
func join(t *testing.T, m *manager, token string) (*ca.Keys, error) {
	t.Helper()
	parsed, err := ca.ParseToken(token)
	check(t, err)
	root, err := swarmpb.NewCAClient(m.dial(t, rpc.JoinConfig(nil))).GetRootCACertificate(t.Context(), &swarmpb.GetRootCACertificateRequest{})
	check(t, err)
	if !parsed.Trusts(root.Certificate) {
		t.Fatal("the token does not trust the root")
	}
	trusted, err := ca.ParseRoot(root.Certificate, nil)
	check(t, err)
	client := swarmpb.NewNodeCAClient(m.dial(t, rpc.JoinConfig(trusted)))
	key, csr, err := ca.NewRequest()
	check(t, err)
	issued, err := client.IssueNodeCertificate(t.Context(), &swarmpb.IssueNodeCertificateRequest{Csr: csr, Token: token})
	if err != nil {
		return nil, err
	}
	status, err := client.NodeCertificateStatus(t.Context(), &swarmpb.NodeCertificateStatusRequest{NodeId: issued.NodeId})
	check(t, err)
	if status.Status.State != swarmpb.IssuanceStatus_ISSUED || string(status.Certificate.Csr) != string(csr) {
		t.Fatalf("status = %v", status)
	}
	return ca.NewKeys(trusted, status.Certificate.Certificate, key, time.Now())
}

func TestJoinAndRenew(t *testing.T) {
	m, _ := newManager(t, options{})
	for role, token := range map[swarm.NodeRole]string{
		swarm.NodeRoleWorker: m.cluster.JoinTokens.Worker, swarm.NodeRoleManager: m.cluster.JoinTokens.Manager,
	} {
		keys, err := join(t, m, token)
		check(t, err)
		id := keys.Identity()
		if id.Role != role || id.Cluster != m.cluster.ID {
			t.Errorf("identity = %+v", id)
		}
		creds := &rpc.Credentials{}
		check(t, creds.Set(keys))
		client := swarmpb.NewNodeCAClient(m.dial(t, creds.ClientConfig(ca.AuthorityName)))
		_, csr, err := ca.NewRequest()
		check(t, err)
		issued, err := client.IssueNodeCertificate(t.Context(), &swarmpb.IssueNodeCertificateRequest{Csr: csr})
		check(t, err)
		if issued.NodeId != id.NodeID {
			t.Errorf("renewed as %s, was %s", issued.NodeId, id.NodeID)
		}
		n := store.Get[*api.Node](m.store.View(), id.NodeID)
		if n.Role != role || n.Certificate.State != api.CertificateIssued || string(n.Certificate.CSR) != string(csr) {
			t.Errorf("node = %+v", n.Certificate)
		}
	}
	if _, err := join(t, m, ca.NewToken(m.root)); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "valid join token") {
		t.Errorf("join with a wrong secret: %v", err)
	}
}

func TestWhoMayCall(t *testing.T) {
	m, _ := newManager(t, options{})
	worker := m.member(t, "worker1")
	ctx := t.Context()
	nobody := m.dial(t, rpc.JoinConfig(m.root))
	if _, err := swarmpb.NewDispatcherClient(nobody).Heartbeat(ctx, &swarmpb.HeartbeatRequest{}); !api.Is(err, api.Unauthenticated) {
		t.Errorf("Heartbeat without certificate: %v", err)
	}
	conn := m.client(t, worker)
	if _, err := swarmpb.NewCAClient(conn).GetUnlockKey(ctx, &swarmpb.GetUnlockKeyRequest{}); !api.Is(err, api.PermissionDenied) {
		t.Errorf("GetUnlockKey by a worker: %v", err)
	}
	if err := conn.Invoke(ctx, "/docker.swarmkit.v1.Control/ListNodes", &swarmpb.HeartbeatRequest{}, &swarmpb.HeartbeatResponse{}); !api.Is(err, api.Unimplemented) {
		t.Errorf("unknown method: %v", err)
	}
	m.removed.Store("worker1", true)
	if _, err := swarmpb.NewDispatcherClient(conn).Heartbeat(ctx, &swarmpb.HeartbeatRequest{}); !api.Is(err, api.NotFound) {
		t.Errorf("call of a removed node: %v", err)
	}
	other, _ := newManager(t, options{})
	if _, err := swarmpb.NewDispatcherClient(other.client(t, worker)).Heartbeat(ctx, &swarmpb.HeartbeatRequest{}); err == nil {
		t.Error("a node of one swarm called a manager of another")
	}
}

// Who has no certificate can't have a manager hold megabytes for it; a node can.
func TestStrangerSendsMuch(t *testing.T) {
	m, _ := newManager(t, options{})
	large := &swarmpb.IssueNodeCertificateRequest{Csr: make([]byte, 1<<20)}
	stranger := swarmpb.NewNodeCAClient(m.dial(t, rpc.JoinConfig(m.root)))
	if _, err := stranger.IssueNodeCertificate(t.Context(), large); !api.Is(err, api.Unavailable) {
		t.Errorf("a stranger: %v", err)
	}
	node := swarmpb.NewNodeCAClient(m.client(t, m.member(t, "n")))
	if _, err := node.IssueNodeCertificate(t.Context(), large); !api.Is(err, api.Invalid) {
		t.Errorf("a node: %v", err)
	}
}

func TestFencing(t *testing.T) {
	m, _ := newManager(t, options{})
	client := swarmpb.NewDispatcherClient(m.client(t, m.member(t, "node1")))
	m.member(t, "node2")
	ctx := t.Context()
	open := func() (swarmpb.Dispatcher_SessionClient, string) {
		s, err := client.Session(ctx, &swarmpb.SessionRequest{Description: &swarmpb.NodeDescription{Hostname: "h"}})
		check(t, err)
		first, err := s.Recv()
		check(t, err)
		return s, first.SessionId
	}
	old, oldID := open()
	_, id := open()
	if _, err := old.Recv(); err == nil {
		t.Error("the old session's stream goes on")
	}
	update := func(session, task string, s swarmpb.TaskState) error {
		_, err := client.UpdateTaskStatus(ctx, &swarmpb.UpdateTaskStatusRequest{
			SessionId: session,
			Updates: []*swarmpb.UpdateTaskStatusRequest_TaskStatusUpdate{
				{TaskId: task, Status: &swarmpb.TaskStatus{State: s}},
			},
		})
		return err
	}
	m.create(t, m.task("mine", "node1"), m.task("other", "node2"))
	for what, err := range map[string]error{
		"old session":     update(oldID, "mine", swarmpb.TaskState_RUNNING),
		"no session":      update("", "mine", swarmpb.TaskState_RUNNING),
		"another's task":  update(id, "other", swarmpb.TaskState_RUNNING),
		"manager's state": update(id, "mine", swarmpb.TaskState_ORPHANED),
		"no state":        update(id, "mine", 4711),
		"task without id": update(id, "", swarmpb.TaskState_RUNNING),
	} {
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	check(t, update(id, "gone", swarmpb.TaskState_RUNNING))
	check(t, update(id, "mine", swarmpb.TaskState_RUNNING))
	check(t, update(id, "mine", swarmpb.TaskState_STARTING))
	if s := store.Get[*api.Task](m.store.View(), "mine").Status.State; s != swarm.TaskStateRunning {
		t.Errorf("state went back to %s", s)
	}
	if s := store.Get[*api.Task](m.store.View(), "other").Status.State; s != swarm.TaskStateAssigned {
		t.Errorf("another node's task is %s", s)
	}
	if _, err := client.Session(ctx, &swarmpb.SessionRequest{Description: &swarmpb.NodeDescription{Hostname: strings.Repeat("x", 1<<20)}}); err == nil {
		s, _ := client.Session(ctx, &swarmpb.SessionRequest{Description: &swarmpb.NodeDescription{Hostname: strings.Repeat("x", 1<<20)}})
		if _, err := s.Recv(); !api.Is(err, api.Invalid) {
			t.Errorf("oversized description: %v", err)
		}
	}
}

func read(t *testing.T, m *manager, sel dispatcher.LogSelector, o dispatcher.LogOptions) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	err := m.disp.Logs().Logs(ctx, sel, o, func(l dispatcher.LogMessage) error {
		got = append(got, l.TaskID+":"+strings.TrimSpace(string(l.Data)))
		return nil
	})
	return got, err
}

func TestLogs(t *testing.T) {
	m, _ := newManager(t, options{})
	a, b := m.worker(t, nil), m.worker(t, nil)
	a.run(t)
	stopB := b.run(t)
	m.create(t, m.task("t1", a.id), m.task("t2", b.id), m.task("t3", a.id))
	for _, id := range []string{"t1", "t2", "t3"} {
		m.untilState(t, id, swarm.TaskStateRunning)
	}
	for i := range 3 {
		a.fake.Print("t1", fmt.Sprint(3*i))
		b.fake.Print("t2", fmt.Sprint(3*i+1))
		a.fake.Print("t3", fmt.Sprint(3*i+2))
	}
	all := dispatcher.LogSelector{ServiceIDs: []string{"service"}}
	got, err := read(t, m, all, dispatcher.LogOptions{Tail: -1})
	check(t, err)
	if want := "t1:0 t2:1 t3:2 t1:3 t2:4 t3:5 t1:6 t2:7 t3:8"; strings.Join(got, " ") != want {
		t.Errorf("logs = %v, want %s", got, want)
	}
	if got, err = read(t, m, dispatcher.LogSelector{TaskIDs: []string{"t2"}}, dispatcher.LogOptions{Tail: 1}); err != nil || len(got) != 1 || got[0] != "t2:7" {
		t.Errorf("the last line of t2 = %v, %v", got, err)
	}
	check(t, stopB())
	eventually(t, "the node's absence is noticed", func() bool {
		got, err = read(t, m, all, dispatcher.LogOptions{Tail: -1})
		return err != nil
	})
	if len(got) != 6 || !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), b.id) {
		t.Errorf("with a node missing: %v, %v", got, err)
	}
}

func TestLogsFollow(t *testing.T) {
	m, _ := newManager(t, options{})
	a := m.worker(t, nil)
	a.run(t)
	m.create(t, m.task("t1", a.id))
	m.untilState(t, "t1", swarm.TaskStateRunning)
	a.fake.Print("t1", "before")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	lines := make(chan string, 10)
	done := make(chan error, 1)
	go func() {
		done <- m.disp.Logs().Logs(ctx, dispatcher.LogSelector{ServiceIDs: []string{"service"}}, dispatcher.LogOptions{Follow: true, Tail: -1},
			func(l dispatcher.LogMessage) error { lines <- strings.TrimSpace(string(l.Data)); return nil })
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatal("ended:", err)
		}
	}
	expect("before")
	a.fake.Print("t1", "after")
	expect("after")
	// A task, and a node, that come later.
	b := m.worker(t, func(*api.Task) exectest.Script { return exectest.Script{Lines: []string{"late"}} })
	stopB := b.run(t)
	m.create(t, m.task("t2", b.id))
	expect("late")
	// A node that comes back tells what was printed meanwhile, and nothing twice.
	check(t, stopB())
	b.fake.Print("t2", "meanwhile")
	b.run(t)
	expect("meanwhile")
	b.fake.Print("t2", "again")
	expect("again")
	cancel()
	if err := <-done; err == nil {
		t.Error("Logs with follow ended without error when its context did")
	}
}
