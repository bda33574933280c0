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
	readme, err := os.ReadFile(root + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := tour(string(readme))
	if len(blocks) < 3 {
		t.Fatalf("the tour has %d blocks of commands", len(blocks))
	}
	for _, b := range blocks {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", b)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket, "PATH="+mustAbs(t, root+"/bin")+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		cancel()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", b, err, out)
		}
		t.Logf("%s\n%s", b, out)
	}
}

// tour returns the blocks of commands after a line <!-- tour -->.
func tour(readme string) []string {
	const mark = "<!-- tour -->\n```sh\n"
	var blocks []string
	for {
		_, rest, ok := strings.Cut(readme, mark)
		if !ok {
			return blocks
		}
		block, after, ok := strings.Cut(rest, "\n```")
		if !ok {
			return blocks
		}
		blocks, readme = append(blocks, block), after
	}
}
