package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestSoak does random things to one node until time is up: scales, updates,
// kills containers, stops and kills the daemon. After each round the services
// have exactly the containers that were asked for. SOAK_MINUTES turns it on;
// the same SOAK_SEED does the same things.
func TestSoak(t *testing.T) {
	minutes, _ := strconv.Atoi(os.Getenv("SOAK_MINUTES"))
	if minutes == 0 {
		t.Log("off: set SOAK_MINUTES, or run make soak")
		return
	}
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	if err != nil {
		t.Fatalf("SOAK_SEED: %v", err)
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.image(t, "app:2", `"Labels":{"v":"2"}`)
	want := map[string]int{}
	for i := range 3 {
		name := fmt.Sprint("s", i)
		want[name] = 2
		n.service(t, name, "--replicas", "2", "app:1", "sleep")
	}
	end := time.Now().Add(time.Duration(minutes) * time.Minute)
	rounds := 0
	for ; time.Now().Before(end); rounds++ {
		for range 1 + random.IntN(3) {
			n.disturb(t, random, want)
		}
		for name, count := range want {
			n.awaitReplicas(t, name, fmt.Sprintf("%d/%d", count, count))
			n.awaitContainers(t, name, count)
		}
	}
	t.Logf("%d rounds", rounds)
}

// disturb does one thing that a node must stand.
func (n *node) disturb(t *testing.T, random *rand.Rand, want map[string]int) {
	t.Helper()
	name := fmt.Sprint("s", random.IntN(len(want)))
	switch what := random.IntN(6); what {
	case 0:
		want[name] = random.IntN(12)
		t.Logf("scale %s to %d", name, want[name])
		n.docker(t, "service", "scale", "-d", fmt.Sprintf("%s=%d", name, want[name]))
	case 1:
		image := fmt.Sprint("app:", 1+random.IntN(2))
		t.Logf("update %s to %s", name, image)
		n.docker(t, "service", "update", "-q", "-d", "--no-resolve-image", "--force", "--image", image, name)
	case 2:
		t.Logf("kill all of %s", name)
		pids, err := n.processes(name)
		if err != nil {
			t.Logf("some are gone: %v", err)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Logf("kill %d: %v", pid, err)
			}
		}
	case 3:
		t.Log("stop the daemon")
		n.stop(t)
		n.start(t)
	case 4:
		t.Log("kill the daemon")
		n.crash(t)
		n.start(t)
	case 5:
		t.Logf("remove and create %s", name)
		n.docker(t, "service", "rm", name)
		n.docker(t, "service", "create", "-q", "-d", "--no-resolve-image", "--restart-delay", "100ms", "--name", name, "--replicas", strconv.Itoa(want[name]), "app:1", "sleep")
	}
}
