package test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRestart holds that containers do not notice what happens to the daemon.
func TestRestart(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "web", "--replicas", "3", "app:1", "sleep")
	n.awaitContainers(t, "web", 3)
	before := n.pids(t, "web")
	same := func(t *testing.T, how string) {
		t.Helper()
		n.awaitReplicas(t, "web", "3/3")
		if now := n.pids(t, "web"); !slices.Equal(now, before) {
			t.Errorf("%s: pids %v, were %v", how, now, before)
		}
	}

	n.stop(t)
	n.start(t)
	same(t, "after SIGTERM")

	if status := n.signal(t, syscall.SIGINT); status != 0 {
		t.Errorf("SIGINT: exit status %d, want 0", status)
	}
	n.start(t)
	same(t, "after SIGINT")

	n.crash(t)
	n.start(t)
	same(t, "after kill -9")

	// The daemon that comes back is not only alive: it works on.
	n.docker(t, "service", "scale", "web=5")
	n.awaitContainers(t, "web", 5)

	t.Run("what ended meanwhile is told with its status", func(t *testing.T) {
		n.service(t, "two", "--replicas", "2", "--restart-condition", "none", "app:1", "trap", "5")
		n.awaitContainers(t, "two", 2)
		pids := n.pids(t, "two")
		n.crash(t)
		if err := syscall.Kill(pids[0], syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		n.awaitTask(t, "two", "{{.CurrentState}} {{.Error}}", "failed", "non-zero exit (5)")
		if now := n.pids(t, "two"); len(now) != 1 || now[0] != pids[1] {
			t.Errorf("pids %v, want %d alone", now, pids[1])
		}
	})

	t.Run("all containers gone, as after a reboot", func(t *testing.T) {
		pids := n.pids(t, "web")
		n.crash(t)
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		n.start(t)
		n.awaitReplicas(t, "web", "5/5")
		n.awaitContainers(t, "web", 5)
		now := n.pids(t, "web")
		for _, pid := range pids {
			if slices.Contains(now, pid) {
				t.Errorf("pid %d was killed and is there", pid)
			}
		}
		for range 10 { // no sixth comes
			if ids, err := n.containers("web"); err != nil || len(ids) > 5 {
				t.Fatalf("%d containers, %v", len(ids), err)
			}
			time.Sleep(pollInterval)
		}
	})
}

// TestCrashes kills the daemon again and again while it works: what it
// acknowledged is there afterwards.
func TestCrashes(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "web", "--replicas", "1", "app:1", "sleep")
	var made []string
	for round := range 5 {
		for i := range 3 {
			name := fmt.Sprintf("s%d-%d", round, i)
			n.docker(t, "service", "create", "-q", "-d", "--no-resolve-image", "--name", name, "--replicas", "0", "app:1")
			made = append(made, name)
		}
		n.docker(t, "service", "scale", "-d", fmt.Sprintf("web=%d", 1+round*2))
		n.crash(t)
		n.start(t)
		out := strings.Fields(n.docker(t, "service", "ls", "--format", "{{.Name}}"))
		for _, name := range made {
			if !slices.Contains(out, name) {
				t.Fatalf("round %d: service %s was acknowledged and is gone", round, name)
			}
		}
	}
	n.awaitReplicas(t, "web", "9/9")
	n.awaitContainers(t, "web", 9)
}

// TestDamagedData: what cannot be read is named, not ignored.
func TestDamagedData(t *testing.T) {
	n := swarmNode(t)
	n.docker(t, "service", "create", "-q", "-d", "--no-resolve-image", "--name", "kept", "--replicas", "0", "app:1")
	n.crash(t)
	t.Run("a torn tail of the log is cut", func(t *testing.T) {
		wal := lastWAL(t, n.data+"/swarm/raft")
		f, err := os.OpenFile(wal, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("torn\x00\x01\x02")); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		await(t, "the swarm answers", func() error {
			out, err := n.command("docker", "service", "ls", "-q", "-f", "name=kept")
			if err == nil && strings.TrimSpace(out) == "" {
				err = fmt.Errorf("the service is gone")
			}
			return err
		})
	})
}

// lastWAL is the file below the folder that was written last and looks like a
// log.
func lastWAL(t *testing.T, dir string) string {
	t.Helper()
	var last string
	var at time.Time
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(e.Name(), "wal") && !info.IsDir() && !info.ModTime().Before(at) {
			last, at = dir+"/"+e.Name(), info.ModTime()
		}
	}
	if last == "" {
		t.Fatalf("no log in %s: %v", dir, entries)
	}
	return last
}
