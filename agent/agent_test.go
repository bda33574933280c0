package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

func status(message string) *swarm.TaskStatus { return &swarm.TaskStatus{Message: message} }

// A status is sent until it is acknowledged, and only the last one of a task.
func TestReporter(t *testing.T) {
	r := newReporter()
	r.put("a", status("1"))
	r.put("b", status("1"))
	r.put("a", status("2"))
	lost := errors.New("lost")
	var got []string
	note := func(batch []taskStatus) {
		for _, b := range batch {
			got = append(got, b.id+b.status.Message)
		}
	}
	if err := r.run(t.Context(), func(_ context.Context, batch []taskStatus) error { note(batch); return lost }); !errors.Is(err, lost) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_ = r.run(ctx, func(_ context.Context, batch []taskStatus) error {
		note(batch)
		if len(got) == 4 {
			r.put("a", status("3")) // while the batch is under way
			r.forget("b")
		} else {
			cancel()
		}
		return nil
	})
	want := []string{"a2", "b1", "a2", "b1", "a3"}
	if len(got) != len(want) {
		t.Fatalf("sent %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("sent %v, want %v", got, want)
		}
	}
	if left := r.batch(); len(left) != 0 || len(r.order) != 0 {
		t.Errorf("left over: %v, %v", left, r.order)
	}
}

func TestDisk(t *testing.T) {
	d := disk{filepath.Join(t.TempDir(), "tasks")}
	if tasks, broken, err := d.load(); err != nil || len(tasks)+len(broken) != 0 {
		t.Fatalf("load of nothing: %v, %v, %v", tasks, broken, err)
	}
	for _, id := range []string{"a", "b", "c"} {
		if err := d.save(&swarmpb.Task{Id: id, ServiceId: "s"}); err != nil {
			t.Fatal(err)
		}
	}
	// A torn file, one of another task, and a write that was cut off.
	b, err := os.ReadFile(d.path("b"))
	if err != nil {
		t.Fatal(err)
	}
	for path, data := range map[string][]byte{d.path("b"): b[:len(b)-1], d.path("x"): b, d.path("c") + "~": b} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tasks, broken, err := d.load()
	if err != nil || len(tasks) != 2 || tasks[0].GetId() != "a" || tasks[1].GetId() != "c" || len(broken) != 2 {
		t.Errorf("load = %v, %v, %v", tasks, broken, err)
	}
	if err := errors.Join(d.remove("a"), d.remove("a"), d.remove("c")); err != nil {
		t.Error(err)
	}
	if tasks, broken, err = d.load(); err != nil || len(tasks)+len(broken) != 0 {
		t.Errorf("load after removal: %v, %v, %v", tasks, broken, err)
	}
}

func TestImpossibleIDs(t *testing.T) {
	for _, id := range []string{"", "../x", "a/b", "a.b", "a\x00", string(make([]byte, 65))} {
		if validID(id) {
			t.Errorf("%q is taken", id)
		}
	}
	if !validID("0123456789abcdefghijklmno") {
		t.Error("a good id is refused")
	}
}

// TestLoginsStayOffDisk: a task on disk shows that it has a registry login, and
// waits for the managers to send it.
func TestLoginsStayOffDisk(t *testing.T) {
	spec := &api.TaskSpec{RegistryAuth: "c2VjcmV0", TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "app:1"}}}
	task := &api.Task{ID: "t1", Spec: spec}
	m := swarmpb.NewTask(task, swarmpb.NewTaskSpec(spec), nil)
	w := &worker{}
	r := &runner{id: "t1", worker: w, task: task, message: m}
	if r.withheld() {
		t.Error("a login that is there is withheld")
	}
	kept := r.kept()
	if kept.API().Spec.RegistryAuth != "" || m.API().Spec.RegistryAuth == "" {
		t.Errorf("kept %v of %v", kept.GetSpec(), m.GetSpec())
	}
	r.message = kept
	if !r.withheld() {
		t.Error("from disk, it does not wait for its login")
	}
	if w.complete = true; r.withheld() {
		t.Error("it waits though the managers have sent all")
	}
}
