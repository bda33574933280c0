package test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/containerd"
	"github.com/legion-swarm/legion/engine/enginetest"
)

// rig is an engine on the real runtime, with folders of its own.
type rig struct {
	*engine.Engine
	dir  string
	rt   *containerd.Runtime
	nets *enginetest.Networks
	cfg  engine.Config
	stop func()
	// reopen is a restart of the daemon.
	reopen func()
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "legion-engine-")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "build", "bundle")
	if out, err := exec.Command(filepath.Join(root, "scripts", "build-bundle"), bin).CombinedOutput(); err != nil {
		t.Fatalf("build-bundle: %v: %s", err, out)
	}
	r := &rig{dir: dir, nets: enginetest.NewNetworks(namespace(t))}
	t.Cleanup(func() {
		r.stop()
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				t.Errorf("still mounted: %s", line)
			}
		}
		groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", filepath.Base(dir)))
		for _, g := range groups {
			_ = os.Remove(g)
		}
		if !t.Failed() {
			_ = os.RemoveAll(dir)
		}
	})
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	open := func() {
		rt, err := containerd.Open(context.Background(), containerd.Config{
			Root: filepath.Join(dir, "data/containerd"), State: filepath.Join(dir, "exec/containerd"),
			Runc: filepath.Join(bin, "runc"), Shim: filepath.Join(bin, "containerd-shim-runc-v2"),
			CgroupParent: "/" + filepath.Base(dir), Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		r.rt = rt
		r.cfg = engine.Config{
			DataRoot: filepath.Join(dir, "data"), ExecRoot: filepath.Join(dir, "exec"), Runtime: rt, Images: rt.Images(),
			Networks: r.nets, Log: log, InitPath: filepath.Join(bin, "legion-init"),
		}
		if r.Engine, err = engine.New(r.cfg); err != nil {
			t.Fatal(err)
		}
		if err := r.Restore(context.Background()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		e := r.Engine
		wg.Go(func() {
			if err := rt.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		r.stop = func() {
			cancel()
			wg.Wait()
			if err := rt.Close(); err != nil {
				t.Error(err)
			}
			r.stop = func() {}
		}
	}
	open()
	t.Cleanup(func() { r.removeAll(t) })
	r.reopen = func() { r.stop(); open() }
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (r *rig) removeAll(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	list, err := r.ContainerList(ctx, engine.ContainerListOptions{All: true})
	if err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if err := r.ContainerRemove(ctx, c.ID, engine.RemoveOptions{Force: true, Volumes: true}); err != nil {
			t.Error(err)
		}
	}
}

// image loads the suite's image as app:1, with more in its config.
func (r *rig) image(t testing.TB, more map[string]any) {
	t.Helper()
	img := enginetest.ProgImage(enginetest.Prog(t), "app:1")
	for k, v := range more {
		img.Config[k] = v
	}
	img.Layers = append(img.Layers, map[string][]byte{
		"etc/passwd": []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"),
		"etc/group":  []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\n"),
		"data/seed":  []byte("seed"),
		"tmp/.keep":  nil,
	})
	if err := r.ImageLoad(t.Context(), bytes.NewReader(enginetest.DockerArchive(t, img)), nil, nil); err != nil {
		t.Fatal(err)
	}
}

// create makes a container with the program's arguments.
func (r *rig) create(t testing.TB, name string, change func(*engine.CreateOptions), args ...string) string {
	t.Helper()
	o := engine.CreateOptions{Name: name, Config: &container.Config{Image: "app:1", Cmd: args}, Host: &container.HostConfig{NetworkMode: "host"}}
	if change != nil {
		change(&o)
	}
	resp, err := r.ContainerCreate(t.Context(), o)
	if err != nil {
		t.Fatal("create:", err)
	}
	return resp.ID
}

func (r *rig) start(t testing.TB, id string) {
	t.Helper()
	if err := r.ContainerStart(t.Context(), id); err != nil {
		t.Fatal("start:", err)
	}
}

func (r *rig) wait(t testing.TB, id string) int {
	t.Helper()
	ch, err := r.ContainerWait(t.Context(), id, container.WaitConditionNotRunning)
	if err != nil {
		t.Fatal("wait:", err)
	}
	select {
	case w := <-ch:
		return int(w.StatusCode)
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	return -1
}

func (r *rig) output(t testing.TB, id string) string {
	t.Helper()
	var b strings.Builder
	_, err := r.ContainerLogs(t.Context(), id, engine.LogsOptions{Stdout: true, Stderr: true, Tail: -1}, func(m engine.LogMessage) error {
		b.Write(m.Line)
		return nil
	})
	if err != nil {
		t.Fatal("logs:", err)
	}
	return b.String()
}

// run runs to the end and returns status and output.
func (r *rig) run(t testing.TB, change func(*engine.CreateOptions), args ...string) (int, string) {
	t.Helper()
	id := r.create(t, "", change, args...)
	r.start(t, id)
	code := r.wait(t, id)
	out := r.output(t, id)
	if err := r.ContainerRemove(t.Context(), id, engine.RemoveOptions{Volumes: true}); err != nil {
		t.Fatal("remove:", err)
	}
	return code, out
}

// namespace returns the path of a network namespace that lasts for the test.
func namespace(t testing.TB) string {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: 0}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net")
}
