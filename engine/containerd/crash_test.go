package containerd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

func (r *rig) mustRun(t *testing.T, image, id string, args ...string) (*engine.Streams, int) {
	t.Helper()
	st, err := r.Create(t.Context(), engine.RuntimeContainer{ID: id, Image: image, Spec: enginetest.Spec(args...)})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := r.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return st, pid
}

func (r *rig) mustRemove(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
		if err := r.RemoveRootfs(t.Context(), id); err != nil {
			t.Errorf("remove root of %s: %v", id, err)
		}
	}
}

func (r *rig) exits(t *testing.T) <-chan engine.Exit {
	t.Helper()
	ch, err := r.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func next[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was reported")
		panic("unreachable")
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func killShims(t *testing.T, r *rig) {
	t.Helper()
	n := 0
	for _, p := range processesOf(r.cfg.State) {
		pid, err := strconv.Atoi(strings.Fields(p)[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n == 0 {
		t.Fatal("no shim runs")
	}
}

func TestShimKilled(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	exits := r.exits(t)
	_, pid := r.mustRun(t, image, "a", "trap", "0")
	st, _ := r.mustRun(t, image, "done", "exit", "3")
	_, _ = io.Copy(io.Discard, st.Stdout)
	if e := next(t, exits); e.ID != "done" || e.Code != 3 {
		t.Fatalf("%+v", e)
	}
	_, _, err := r.Exec(t.Context(), "a", "e", enginetest.Spec("sleep").Process, false)
	if err != nil {
		t.Fatal(err)
	}
	killShims(t, r)
	first, second := next(t, exits), next(t, exits)
	if first.ExecID != "e" || first.Code != 137 || second.ID != "a" || second.ExecID != "" || second.Code != 137 || !strings.Contains(second.Reason, "shim") {
		t.Errorf("%+v, %+v", first, second)
	}
	waitFor(t, "the container's process to be gone", func() bool { return !alive(pid) })
	// The node goes on: a new shim for new containers, the same id again.
	r.mustRemove(t, "a", "done")
	r.mustRun(t, image, "a", "sleep")
	r.mustRemove(t, "a")
}

func TestShimKilledWhileDaemonIsAway(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	_, pid := r.mustRun(t, image, "a", "trap", "0")
	st, _ := r.mustRun(t, image, "done", "exit", "3")
	_, _ = io.Copy(io.Discard, st.Stdout)
	waitFor(t, "the end to be written down", func() bool { return exists(filepath.Join(r.cfg.State, "c/done/exit.json")) })
	r.stop()
	killShims(t, r)
	r.open(t)
	got := make(map[string]engine.Exit)
	exits := r.exits(t)
	for range 2 {
		e := next(t, exits)
		got[e.ID] = e
	}
	if e := got["a"]; e.Code != 137 || e.Pid != pid || e.Reason == "" {
		t.Errorf("a: %+v", e)
	}
	if e := got["done"]; e.Code != 3 || e.Reason != "" {
		t.Errorf("done: %+v; its shim had written down how it ended", e)
	}
	waitFor(t, "the process to be gone", func() bool { return !alive(pid) })
	r.mustRemove(t, "a", "done")
}

func TestEndWhileDaemonIsAway(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	_, pid := r.mustRun(t, image, "a", "trap", "23")
	_, other := r.mustRun(t, image, "b", "sleep")
	r.stop()
	waitFor(t, "the end", func() bool { _ = syscall.Kill(pid, syscall.SIGTERM); return !alive(pid) })
	r.open(t)
	if e := next(t, r.exits(t)); e.ID != "a" || e.Code != 23 || e.Pid != pid || time.Since(e.At) > time.Minute {
		t.Errorf("%+v", e)
	}
	if !alive(other) {
		t.Error("b ended with the daemon")
	}
	r.mustRemove(t, "a", "b")
}

// All processes gone and the state folder too, as after a reboot.
func TestReboot(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	st, pid := r.mustRun(t, image, "a", "all", "write", "/kept", "word", ",", "echo", "ready", ",", "sleep")
	if line, err := bufio.NewReader(st.Stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	r.stop()
	killShims(t, r)
	_ = syscall.Kill(pid, syscall.SIGKILL)
	waitFor(t, "the end", func() bool { return !alive(pid) })
	if err := syscall.Unmount(filepath.Join(r.cfg.State, "c/a/rootfs"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.cfg.State); err != nil {
		t.Fatal(err)
	}
	r.open(t)
	if list, err := r.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("listed %v, %v", list, err)
	}
	st, err := r.Create(t.Context(), engine.RuntimeContainer{ID: "a", Image: image, Spec: enginetest.Spec("read", "/kept"), ReuseRootfs: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Start(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(st.Stdout); string(b) != "word" {
		t.Errorf("%q, %v", b, err)
	}
	r.mustRemove(t, "a")
}

// A daemon in a process of its own is killed again and again while it makes
// and removes containers; the next one must find its way.
func TestDaemonKilled(t *testing.T) {
	if os.Getenv("LEGION_TEST_CHILD") != "" {
		child(t)
		return
	}
	r := newRig(t, nil)
	image := r.load(t)
	for round := range 6 {
		r.stop()
		cfg, err := json.Marshal(map[string]string{"Root": r.cfg.Root, "State": r.cfg.State, "Runc": r.cfg.Runc, "Shim": r.cfg.Shim, "CgroupParent": r.cfg.CgroupParent, "Image": image})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestDaemonKilled$")
		cmd.Env = append(os.Environ(), "LEGION_TEST_CHILD="+string(cfg))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+round*37) * time.Millisecond) // anywhere in the middle
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		r.open(t)
		list, err := r.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, st := range list {
			if st.Running && !alive(st.Pid) {
				t.Errorf("%s is said to run as %d", st.ID, st.Pid)
			}
			r.mustRemove(t, st.ID)
		}
		for k := range 4 { // every id can be made again
			id := fmt.Sprint("k", k)
			r.mustRun(t, image, id, "sleep")
			r.mustRemove(t, id)
		}
	}
}

func child(t *testing.T) {
	var c struct{ Root, State, Runc, Shim, CgroupParent, Image string }
	if err := json.Unmarshal([]byte(os.Getenv("LEGION_TEST_CHILD")), &c); err != nil {
		t.Fatal(err)
	}
	r, err := Open(context.Background(), Config{
		Root: c.Root, State: c.State, Runc: c.Runc, Shim: c.Shim, CgroupParent: c.CgroupParent, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	for k := range 4 {
		go func() {
			for ctx, id := context.Background(), fmt.Sprint("k", k); ; {
				st, err := r.Create(ctx, engine.RuntimeContainer{ID: id, Image: c.Image, Spec: enginetest.Spec("sleep")})
				if err == nil {
					go func() { _, _ = io.Copy(io.Discard, st.Stdout) }()
					_, _ = r.Start(ctx, id)
				}
				_ = r.Delete(ctx, id)
				_ = r.RemoveRootfs(ctx, id)
			}
		}()
	}
	select {}
}

// A daemon that dies while a shim starts must not leave the shim behind.
func TestDaemonKilledWhileShimStarts(t *testing.T) {
	r := newRig(t, nil)
	s := &shim{id: newShimID(), gone: make(chan struct{})}
	s.dir = filepath.Join(r.shims.dir, s.id)
	address, err := s.prepare(r.shims)
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	booted := make(chan string, 1)
	go func() {
		a, err := s.boot(context.Background(), r.shims)
		if err != nil {
			t.Error(err)
		}
		booted <- a
	}()
	r.open(t)
	if a := <-booted; a != address {
		t.Errorf("the shim is at %s, expected at %s", a, address)
	}
	waitFor(t, "the shim to end", func() bool { return len(processesOf(r.cfg.State)) == 0 })
}

func TestOOM(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	exits := r.exits(t)
	ooms, err := r.OOMs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(24 << 20)
	spec := enginetest.Spec("alloc", "200")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	if _, err := r.Create(t.Context(), engine.RuntimeContainer{ID: "fat", Image: image, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Start(t.Context(), "fat"); err != nil {
		t.Fatal(err)
	}
	if id := next(t, ooms); id != "fat" {
		t.Errorf("out of memory: %q", id)
	}
	if e := next(t, exits); e.Code != 137 {
		t.Errorf("%+v", e)
	}
	r.mustRemove(t, "fat")
}

// Output that nobody reads must hold up neither the end nor the removal.
func TestUnreadOutput(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	exits := r.exits(t)
	for _, closed := range []bool{false, true} {
		st, _ := r.mustRun(t, image, "flood", "flood")
		if _, err := io.ReadFull(st.Stdout, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if closed {
			_ = st.Stdout.Close()
		}
		start := time.Now()
		if err := r.Kill(t.Context(), "flood", 9, false); err != nil {
			t.Fatal(err)
		}
		if e := next(t, exits); e.Code != 137 {
			t.Errorf("%+v", e)
		}
		r.mustRemove(t, "flood")
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("streams closed %v: removed after %v", closed, d)
		}
	}
}

// Containers that end together must not hold each other up: see the bound on
// the reaper's channels in scripts/build-bundle.
func TestManyEndTogether(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	exits := r.exits(t)
	const n = 60
	for k := range n {
		r.mustRun(t, image, fmt.Sprint("c", k), "sleep")
	}
	if shims := processesOf(r.cfg.State); len(shims) != 1 {
		t.Errorf("%d shims for %d containers", len(shims), n)
	}
	start := time.Now()
	for k := range n {
		if err := r.Kill(t.Context(), fmt.Sprint("c", k), 9, false); err != nil {
			t.Error(err)
		}
	}
	for range n {
		next(t, exits)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("%d ends took %v to be reported", n, d)
	}
	for k := range n {
		r.mustRemove(t, fmt.Sprint("c", k))
	}
}
