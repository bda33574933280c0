package containerd

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

// rig is a runtime on folders of its own, with the programs that
// scripts/build-bundle makes.
type rig struct {
	*Runtime
	cfg  Config
	stop func()
}

// newRig opens a runtime below /var/tmp; the end of the test checks that
// nothing of it is left.
func newRig(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("/var/tmp", "legion-containerd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkGone(t, dir) })
	bin := programs(t)
	cfg := Config{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"),
		Runc: filepath.Join(bin, "runc"), Shim: filepath.Join(bin, "containerd-shim-runc-v2"),
		CgroupParent: "/" + filepath.Base(dir), Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	r := &rig{cfg: cfg}
	r.open(t)
	t.Cleanup(func() { r.stop() })
	return r
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 || testing.Short() {
		t.Skip("containers need root, and are left out of short tests")
	}
}

// testWriter logs to the test, which must not have ended.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// open starts the runtime; stop ends it and leaves its containers.
func (r *rig) open(t testing.TB) {
	t.Helper()
	var err error
	if r.Runtime, err = Open(context.Background(), r.cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	rt := r.Runtime
	go func() { done <- rt.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := rt.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		r.stop = func() {}
	}
}

func (r *rig) restart(t *testing.T) {
	t.Helper()
	r.stop()
	r.open(t)
}

// programs builds the bundled programs where that was not done yet.
func programs(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "build", "bundle")
	out, err := exec.Command(filepath.Join(root, "scripts", "build-bundle"), dir).CombinedOutput()
	if err != nil {
		t.Fatalf("build-bundle: %v: %s", err, out)
	}
	return dir
}

// checkGone fails when anything below dir still runs or is mounted, or a
// cgroup is left.
func checkGone(t testing.TB, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			t.Errorf("still mounted: %s", line)
		}
	}
	for _, p := range processesOf(dir) {
		t.Errorf("still running: %s", p)
	}
	groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", filepath.Base(dir)))
	for _, g := range groups {
		below, _ := filepath.Glob(filepath.Join(g, "*/"))
		for _, b := range below {
			if info, err := os.Stat(b); err == nil && info.IsDir() {
				t.Errorf("cgroup left: %s", b)
			}
		}
		_ = os.Remove(g)
	}
	if !t.Failed() {
		for _, sub := range []string{"c", "shims", "runc/legion", "m", "s"} {
			left, _ := names(filepath.Join(dir, "state", sub))
			if len(left) > 0 && (len(left) != 1 || left[0] != "events") {
				t.Errorf("left in state/%s: %v", sub, left)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// processesOf lists processes whose working folder is below dir: the shims.
func processesOf(dir string) []string {
	all, _ := filepath.Glob("/proc/[0-9]*")
	var found []string
	for _, p := range all {
		cwd, err := os.Readlink(filepath.Join(p, "cwd"))
		if err == nil && strings.HasPrefix(cwd, dir) {
			cmd, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			found = append(found, filepath.Base(p)+" "+string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// load puts the program's image in and returns its id.
func (r *rig) load(t testing.TB) string {
	t.Helper()
	ar := enginetest.DockerArchive(t, enginetest.ProgImage(enginetest.Prog(t), "suite:1"))
	if err := r.Images().Load(t.Context(), bytes.NewReader(ar), nil, nil); err != nil {
		t.Fatal(err)
	}
	img, err := r.Images().Resolve(t.Context(), "suite:1")
	if err != nil {
		t.Fatal(err)
	}
	return img.ID
}

func TestRuntime(t *testing.T) {
	enginetest.Runtime(t, func(t *testing.T) enginetest.RuntimeEnv {
		r := newRig(t, nil)
		return enginetest.RuntimeEnv{Runtime: r, Image: r.load(t), Restart: func(t *testing.T) engine.Runtime {
			r.restart(t)
			return r
		}}
	})
}

func TestRuntimeNative(t *testing.T) {
	enginetest.Runtime(t, func(t *testing.T) enginetest.RuntimeEnv {
		r := newRig(t, func(c *Config) { c.Snapshotter = "native" })
		return enginetest.RuntimeEnv{Runtime: r, Image: r.load(t), Restart: func(t *testing.T) engine.Runtime {
			r.restart(t)
			return r
		}}
	})
}

func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
