package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// TestAcceptance runs a black-box script that stands beside the repository,
// where there is one: it knows nothing but commands and their output.
func TestAcceptance(t *testing.T) {
	needBinary(t)
	for _, script := range []string{"one-node"} {
		path := mustAbs(t, root+"/../shared/accept/"+script)
		if _, err := os.Stat(path); err != nil {
			t.Logf("%s is not there", path)
			continue
		}
		t.Run(script, func(t *testing.T) {
			dir, err := os.MkdirTemp("/var/tmp", "legion-test-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if out, err := exec.Command(root+"/scripts/erase", dir+"/data", dir+"/exec").CombinedOutput(); err != nil {
					t.Errorf("erase: %v\n%s", err, out)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, path)
			cmd.Dir, cmd.Env = mustAbs(t, root), append(os.Environ(), "T="+dir)
			out, err := cmd.CombinedOutput()
			if err != nil {
				log, _ := os.ReadFile(dir + "/daemon.log")
				t.Errorf("%v\n%s\nthe daemon's log:\n%s", err, out, log[max(0, len(log)-4<<10):])
				return
			}
			t.Logf("%s", out)
		})
	}
}
