package node

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/store"
)

var allLogs = engine.LogsOptions{Stdout: true, Stderr: true, Tail: -1}

// reader follows a service's logs.
type reader struct {
	t     *testing.T
	lines chan dockerapi.TaskLog
	stop  context.CancelFunc
	ended chan error
}

func (n *testNode) follow(t *testing.T, service string, o engine.LogsOptions, buffer int) *reader {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{t: t, lines: make(chan dockerapi.TaskLog, buffer), stop: cancel, ended: make(chan error, 1)}
	o.Follow = true
	go func() {
		_, err := n.ServiceLogs(ctx, service, o, func(m dockerapi.TaskLog) error {
			select {
			case r.lines <- m:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		r.ended <- err
	}()
	t.Cleanup(r.close)
	return r
}

func (r *reader) close() {
	r.stop()
	if err := <-r.ended; err != nil && !errors.Is(err, context.Canceled) {
		r.t.Errorf("following ended with %v", err)
	}
	r.ended <- nil
}

// next returns the next lines' texts.
func (r *reader) next(count int) []string {
	r.t.Helper()
	var got []string
	late := time.NewTimer(20 * time.Second)
	defer late.Stop()
	for len(got) < count {
		select {
		case m := <-r.lines:
			if !m.Note {
				got = append(got, strings.TrimSpace(string(m.Line)))
			}
		case <-late.C:
			r.t.Fatalf("got %q, want %d lines", got, count)
		}
	}
	return got
}

// note waits for a note with the words.
func (r *reader) note(words ...string) {
	r.t.Helper()
	late := time.NewTimer(30 * time.Second)
	defer late.Stop()
	for {
		select {
		case m := <-r.lines:
			if m.Note && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(string(m.Line), w) }) {
				if m.TaskID == "" || m.ServiceID == "" {
					r.t.Errorf("clients can't show %+v", m)
				}
				return
			}
		case <-late.C:
			r.t.Fatalf("no note with %q", words)
		}
	}
}

// tasksOf are a service's running tasks, as the manager knows them.
func (n *testNode) tasksOf(service string) []*api.Task {
	n.t.Helper()
	r, err := n.leading()
	if err != nil {
		n.t.Fatal(err)
	}
	var out []*api.Task
	for t := range store.List[*api.Task](r.store.View()) {
		if t.Spec.ServiceName == service && t.Status.State == swarm.TaskStateRunning {
			out = append(out, t)
		}
	}
	return out
}

func print(nodes []*testNode, t *api.Task, line string) {
	for _, n := range nodes {
		n.fake.Print(t.ID, line+"\n") // only one has it
	}
}

// TestFollowInOrder: what there is comes in order of time from all nodes, then
// what is new; of a task that comes later too; nothing twice.
func TestFollowInOrder(t *testing.T) {
	m, a, b := newTestNode(t, nil), newTestNode(t, nil), newTestNode(t, nil)
	nodes := []*testNode{m, a, b}
	m.init()
	a.join(m)
	b.join(m)
	m.create(spec("talk", 6))
	m.until("six run", alive(6))
	tasks := m.tasksOf("talk")
	var want []string
	for i := range 600 {
		want = append(want, fmt.Sprint("line ", i))
		print(nodes, tasks[i%len(tasks)], want[i])
	}
	r, tail := m.follow(t, "talk", allLogs, 0), m.follow(t, "talk", engine.LogsOptions{Stdout: true, Stderr: true, Tail: 1}, 0)
	if got := r.next(len(want)); !slices.Equal(got, want) {
		t.Errorf("not in order: %q", got)
	}
	if got := tail.next(6); !slices.Equal(got, want[594:]) {
		t.Errorf("the last line of each: %q", got)
	}
	print(nodes, tasks[0], "new")
	for _, r := range []*reader{r, tail} {
		if got := r.next(1); got[0] != "new" {
			t.Errorf("got %q", got)
		}
	}
	m.change("talk", func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(7))} })
	m.until("seven run", alive(7))
	for _, task := range m.tasksOf("talk") {
		if !slices.ContainsFunc(tasks, func(old *api.Task) bool { return old.ID == task.ID }) {
			print(nodes, task, "late")
		}
	}
	for _, r := range []*reader{r, tail} {
		if got := r.next(1); got[0] != "late" {
			t.Errorf("got %q", got)
		}
	}
}

// TestLogsWithoutANode: nobody waits for a node that is gone; readers are told
// that it is missing, and get its lines when it is back.
func TestLogsWithoutANode(t *testing.T) {
	m, w := newTestNode(t, nil), newTestNode(t, nil)
	m.init()
	w.join(m)
	s := spec("talk", 2)
	s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}}
	m.create(s)
	m.until("two run", alive(2))
	task := m.tasksOf("talk")[0]
	print([]*testNode{w}, task, "before")
	r := m.follow(t, "talk", allLogs, 100)
	if got := r.next(1); got[0] != "before" {
		t.Errorf("got %q", got)
	}
	dir, id := w.dir, w.id()
	w.end(nil)
	began := time.Now()
	_, err := m.ServiceLogs(t.Context(), "talk", allLogs, func(dockerapi.TaskLog) error { return nil })
	// The manager may be asked before it has noticed that the node is gone.
	if !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), "not connected") && !strings.Contains(err.Error(), "connection to it broke") || time.Since(began) > 5*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	r.note(id, "can't be read")
	w.fake.Print(task.ID, "meanwhile\n")
	w.open(dir)
	if got := r.next(1); got[0] != "meanwhile" {
		t.Errorf("got %q", got)
	}
}

// TestUnreadableLogs: a driver that keeps nothing says so, and the other tasks'
// lines come.
func TestUnreadableLogs(t *testing.T) {
	n := newTestNode(t, func(task *api.Task) exectest.Script {
		if task.Slot == 1 {
			return exectest.Script{LogsErr: api.Errorf(api.Unimplemented, "configured logging driver does not support reading")}
		}
		return exectest.Script{Lines: []string{"fine\n"}}
	})
	n.init()
	n.create(spec("talk", 2))
	n.until("both run", alive(2))
	var got []string
	_, err := n.ServiceLogs(t.Context(), "talk", allLogs, func(m dockerapi.TaskLog) error { got = append(got, string(m.Line)); return nil })
	if !api.Is(err, api.Unavailable) || !strings.Contains(err.Error(), "task talk.1.") || !strings.Contains(err.Error(), "does not support reading") || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
	r := n.follow(t, "talk", allLogs, 10)
	r.note("can't be read", "does not support reading")
}

// TestSlowReader: one that does not read holds up nobody else, and leaves nothing
// behind.
func TestSlowReader(t *testing.T) {
	const tasks, lines = 200, 20
	text := strings.Repeat("x", 1000)
	n := newTestNode(t, func(*api.Task) exectest.Script {
		var s exectest.Script
		for i := range lines {
			s.Lines = append(s.Lines, fmt.Sprintf("%d %s\n", i, text))
		}
		return s
	})
	n.init()
	n.create(spec("talk", tasks))
	n.until("all run", alive(tasks))
	n.create(spec("none", 0))
	if got := n.logLines("none"); got != 0 {
		t.Errorf("%d lines without tasks", got)
	}
	before := runtime.NumGoroutine()
	slow := n.follow(t, "talk", allLogs, 0)
	slow.next(1)
	began := time.Now()
	var all sync.WaitGroup
	for range 3 {
		r := n.follow(t, "talk", allLogs, 0)
		all.Go(func() { r.next(tasks * lines); r.close() })
	}
	if got := n.logLines("talk"); got != tasks*lines {
		t.Errorf("%d lines, want %d", got, tasks*lines)
	}
	all.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("others took %v", took)
	}
	slow.close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+5; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestFollowUntil: following ends at a time that is asked for.
func TestFollowUntil(t *testing.T) {
	n := newTestNode(t, func(*api.Task) exectest.Script { return exectest.Script{Lines: []string{"one\n"}} })
	n.init()
	n.create(spec("talk", 1))
	n.until("it runs", alive(1))
	o, lines := allLogs, 0
	o.Follow, o.Until = true, time.Now().Add(300*time.Millisecond)
	if _, err := n.ServiceLogs(t.Context(), "talk", o, func(dockerapi.TaskLog) error { lines++; return nil }); err != nil || lines != 1 {
		t.Errorf("%d lines, %v", lines, err)
	}
}
