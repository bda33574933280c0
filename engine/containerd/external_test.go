package containerd

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

// startContainerd runs a containerd of its own and returns its socket.
func startContainerd(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "legion-external-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkGone(t, dir) })
	bin := filepath.Join(dir, "containerd")
	build := exec.Command("go", "build", "-o", bin, "github.com/containerd/containerd/v2/cmd/containerd")
	build.Dir = "../../tools/containerd"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build containerd: %v: %s", err, out)
	}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, []byte("version = 3\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "sock")
	cmd := exec.Command(bin, "--config", config, "--root", filepath.Join(dir, "root"), "--state", filepath.Join(dir, "run"), "--address", sock, "--log-level", "error")
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGTERM); _ = cmd.Wait() })
	waitFor(t, "containerd's socket", func() bool { return exists(sock) })
	return sock
}

func TestExternalContainerd(t *testing.T) {
	needRoot(t)
	sock := startContainerd(t)
	t.Run("Runtime", func(t *testing.T) {
		enginetest.Runtime(t, func(t *testing.T) enginetest.RuntimeEnv {
			r := newRig(t, func(c *Config) { c.Address, c.Namespace = sock, "legion-runtime" })
			return enginetest.RuntimeEnv{Runtime: r, Image: r.load(t), Restart: func(t *testing.T) engine.Runtime {
				r.restart(t)
				return r
			}}
		})
	})
	t.Run("Images", func(t *testing.T) {
		n := 0
		enginetest.Images(t, func(t *testing.T) engine.Images {
			n++
			return newRig(t, func(c *Config) { c.Address, c.Namespace = sock, "legion-images-"+string(rune('a'+n)) }).Images()
		})
	})
	_, err := Open(t.Context(), Config{Root: "/var/tmp/x", State: "/var/tmp/x", Runc: "/bin/true", Shim: "/bin/true", Address: sock + ".none", Log: slog.New(slog.DiscardHandler)})
	if !api.Is(err, api.Unavailable) {
		t.Errorf("nobody at the address: %v", err)
	}
}
