package test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestReadmeTour runs the commands of the README's tour as they stand there, on
// a node of its own: what a reader types works.
func TestReadmeTour(t *testing.T) {
	n := startedNode(t)
	if out, err := exec.Command(root+"/demo/build-images", root+"/build/images").CombinedOutput(); err != nil {
		t.Fatalf("build-images: %v\n%s", err, out)
	}
	blocks := readmeBlocks(t, "tour")
	for _, b := range blocks {
		typed(t, b, "DOCKER_HOST=unix://"+n.socket)
	}
}

// TestReadmeMachines runs the tour of a swarm, in one shell: it sets variables.
func TestReadmeMachines(t *testing.T) {
	m := newMachines(t)
	typed(t, strings.Join(readmeBlocks(t, "machines"), "\n"), "MACHINE_STORAGE_PATH="+m.dir, "DOCKER_HOST=")
}

// typed runs commands as a reader does.
func typed(t *testing.T, commands string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", commands)
	cmd.Dir = root
	cmd.Env = append(append(os.Environ(), "PATH="+mustAbs(t, root+"/bin")+":"+os.Getenv("PATH")), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", commands, err, out)
	}
	t.Logf("%s\n%s", commands, out)
}

// readmeBlocks returns the README's blocks of commands after a line <!-- mark -->.
func readmeBlocks(t *testing.T, mark string) []string {
	t.Helper()
	b, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for rest, found := string(b), true; ; {
		if _, rest, found = strings.Cut(rest, "<!-- "+mark+" -->\n```sh\n"); !found {
			break
		}
		block, after, ok := strings.Cut(rest, "\n```")
		if !ok {
			break
		}
		blocks, rest = append(blocks, block), after
	}
	if len(blocks) < 3 {
		t.Fatalf("the README has %d blocks of commands for %s", len(blocks), mark)
	}
	return blocks
}
