package test

import (
	"errors"
	"fmt"
	"testing"
)

// TestKeeper : a node has a keeper while a container has names to be answered, over
// restarts of its daemon, and none before or after.
func TestKeeper(t *testing.T) {
	n := startedNode(t)
	n.image(t, "app:1", "")
	n.docker(t, "run", "-d", "--name", "plain", "--entrypoint", "/web", "app:1")
	if l := keepersOf(n.exec); len(l) > 0 {
		t.Errorf("keepers %v, and nothing to keep", l)
	}
	n.docker(t, "network", "create", "net")
	n.docker(t, "run", "-d", "--name", "named", "--network", "net", "--entrypoint", "/web", "app:1")
	first := keepersOf(n.exec)
	if len(first) != 1 {
		t.Fatalf("keepers %v", first)
	}
	n.crash(t)
	n.start(t)
	n.stop(t)
	if l := keepersOf(n.exec); fmt.Sprint(l) != fmt.Sprint(first) {
		t.Errorf("keepers %v, were %v", l, first)
	}
	n.start(t)
	n.docker(t, "rm", "-f", "named", "plain")
	n.docker(t, "network", "rm", "net")
	n.stop(t)
	await(t, "the keeper has ended", func() error {
		if len(keepersOf(n.exec)) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
}
