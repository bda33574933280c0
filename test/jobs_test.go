package test

import (
	"fmt"
	"strings"
	"testing"
)

const taskStates = "{{.Name}} {{.DesiredState}} {{.CurrentState}} {{.Error}}"

// TestJobs runs jobs to their end, with the stock client waiting for them.
func TestJobs(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	replicas := func(service string) string {
		return n.docker(t, "service", "ls", "--format", "{{.Mode}} {{.Replicas}}", "-f", "name="+service)
	}
	iteration := func(service string) string {
		return n.docker(t, "service", "inspect", "-f", "{{.JobStatus.JobIteration.Index}}", service)
	}
	t.Run("replicated", func(t *testing.T) {
		n.service(t, "job", "--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2", "app:1", "exit", "0")
		if got := replicas("job"); got != "replicated job 0/2 (5/5 completed)" {
			t.Error(got)
		}
		n.docker(t, "service", "update", "-q", "--force", "job")
		if got := iteration("job"); got != "1" {
			t.Error("iteration", got)
		}
		n.docker(t, "service", "scale", "job=3")
		if got := replicas("job"); got != "replicated job 0/2 (3/3 completed)" {
			t.Error(got)
		}
		n.legion(t, "service", "restart", "-q", "job")
		if got := iteration("job"); got != "3" {
			t.Error("iteration", got)
		}
		contains(t, n.dockerFails(t, "service", "update", "--update-parallelism", "2", "job").stderr, "update and rollback configuration is not supported for jobs")
	})
	t.Run("global", func(t *testing.T) {
		n.service(t, "gjob", "--mode", "global-job", "app:1", "exit", "0")
		n.docker(t, "service", "update", "-q", "--force", "gjob")
		if got := replicas("gjob"); got != "global job 0/0 (1/1 completed)" {
			t.Error(got)
		}
	})
	t.Run("given up", func(t *testing.T) {
		msg := n.dockerFails(t, "service", "create", "-q", "--no-resolve-image", "--name", "bad", "--mode", "replicated-job", "--replicas", "2",
			"--restart-condition", "on-failure", "--restart-max-attempts", "1", "--restart-delay", "50ms", "app:1", "exit", "3").stderr
		contains(t, msg, "job failed: 0 completed, 2 given up")
		contains(t, msg, "non-zero exit (3)")
		if tasks := n.tasks(t, "bad", taskStates); len(tasks) != 4 {
			t.Errorf("%q", tasks)
		}
	})
	t.Run("stopped and started", func(t *testing.T) {
		n.service(t, "long", "-d", "--mode", "replicated-job", "--replicas", "1", "app:1", "sleep")
		n.awaitReplicas(t, "long", "1/1 (0/1 completed)")
		n.legion(t, "service", "stop", "long")
		n.awaitContainers(t, "long", 0)
		n.legion(t, "service", "start", "-d", "long")
		n.awaitReplicas(t, "long", "1/1 (0/1 completed)")
		if got := iteration("long"); got != "0" {
			t.Error("iteration", got)
		}
	})
}

// TestOneShots: the client comes to an end with services whose tasks do.
func TestOneShots(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "once", "--replicas", "2", "--restart-condition", "none", "app:1", "exit", "0")
	n.awaitTask(t, "once", taskStates, "complete")
	n.docker(t, "service", "update", "-q", "--force", "once")
	msg := n.dockerFails(t, "service", "create", "-q", "--no-resolve-image", "--name", "bad", "--restart-condition", "none", "app:1", "exit", "4").stderr
	contains(t, msg, "1 failed and are not restarted")
	contains(t, msg, "non-zero exit (4)")
}

// TestStopStartRestart of services that run for ever, and back-off.
func TestStopStartRestart(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "loop", "-d", "app:1", "exit", "1")
	for _, args := range [][]string{{"--replicas", "2"}, {"--mode", "global"}} {
		name := "web-" + strings.TrimPrefix(args[0], "--")
		n.service(t, name, append(append([]string{"--update-monitor", "100ms"}, args...), "app:1", "sleep")...)
		up := n.docker(t, "service", "ls", "--format", "{{.Replicas}}", "-f", "name="+name)
		n.docker(t, "service", "update", "-q", "--no-resolve-image", "--env-add", "A=b", name)
		n.legion(t, "service", "stop", name)
		if ids, err := n.containers(name); len(ids) > 0 || err != nil {
			t.Errorf("%s is stopped and has %v, %v", name, ids, err)
		}
		n.awaitReplicas(t, name, "0/"+up[2:])
		contains(t, n.legion(t, "__complete", "service", "start", ""), name)
		n.legion(t, "service", "start", "-q", name)
		if got := n.docker(t, "service", "ls", "--format", "{{.Replicas}}", "-f", "name="+name); got != up {
			t.Errorf("%s is said to have started and has %s", name, got)
		}
		before, err := n.containers(name)
		if err != nil {
			t.Fatal(err)
		}
		n.legion(t, "service", "restart", "-q", name)
		n.awaitReplicas(t, name, up)
		after, err := n.containers(name)
		if err != nil || fmt.Sprint(before) == fmt.Sprint(after) || len(before) != len(after) {
			t.Errorf("%s had %v, and after its restart %v, %v", name, before, after, err)
		}
	}
	n.awaitTask(t, "loop", taskStates, "ready", "back-off: restarts")
}
