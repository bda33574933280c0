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

// TestServices follows a service through its life, with the stock client.
func TestServices(t *testing.T) {
	n := startedNode(t)
	contains(t, n.docker(t, "info"), "Swarm: inactive")
	contains(t, n.dockerFails(t, "service", "ls").stderr, "not a swarm manager")
	n.docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1")
	contains(t, n.docker(t, "node", "ls"), "Leader")
	n.image(t, "app:1", "")
	n.image(t, "app:2", `"Labels":{"second":"1"}`)

	n.service(t, "web", "--replicas", "3", "--label", "team=a", "app:1", "sleep")
	n.awaitReplicas(t, "web", "3/3")
	ids := n.awaitContainers(t, "web", 3)
	contains(t, n.inspect(t, ids[0], "{{json .Config.Labels}}"), `"com.docker.swarm.task.name":"web.`)
	contains(t, n.docker(t, "service", "inspect", "--pretty", "web"), "Replicas:\t3")

	t.Run("scale", func(t *testing.T) {
		n.docker(t, "service", "scale", "web=10")
		n.awaitContainers(t, "web", 10)
		n.docker(t, "service", "scale", "-d", "web=2")
		n.awaitContainers(t, "web", 2)
		n.awaitReplicas(t, "web", "2/2")
	})
	t.Run("filters", func(t *testing.T) {
		for filter, want := range map[string]int{"label=team=a": 1, "label=team=b": 0, "name=we": 1, "mode=replicated": 1, "mode=global": 0} {
			if out := n.docker(t, "service", "ls", "-q", "-f", filter); len(strings.Fields(out)) != want {
				t.Errorf("%s: %q, want %d", filter, out, want)
			}
		}
	})
	t.Run("a killed container is replaced", func(t *testing.T) {
		n.awaitContainers(t, "web", 2)
		pid := n.pids(t, "web")[0]
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		took := await(t, "a new container", func() error {
			now, err := n.processes("web")
			if err == nil && (len(now) != 2 || slices.Contains(now, pid)) {
				err = fmt.Errorf("pids %v", now)
			}
			return err
		})
		t.Logf("replaced after %v, restart delay 100ms and the client's own time included", took.Round(time.Millisecond))
		n.awaitTask(t, "web", "{{.Name}} {{.DesiredState}} {{.CurrentState}}", "shutdown", "failed")
	})
	t.Run("rolling update", func(t *testing.T) {
		n.docker(t, "service", "update", "-q", "--no-resolve-image", "--image", "app:2", "web")
		for _, id := range n.awaitContainers(t, "web", 2) {
			if image := n.inspect(t, id, "{{.Config.Image}}"); image != "app:2" {
				t.Errorf("image %s", image)
			}
		}
	})
	t.Run("remove", func(t *testing.T) {
		n.docker(t, "service", "rm", "web")
		n.awaitContainers(t, "web", 0)
		contains(t, n.dockerFails(t, "service", "inspect", "web").stderr, "web")
	})
	contains(t, n.dockerFails(t, "swarm", "leave").stderr, "--force")
	n.docker(t, "swarm", "leave", "--force")
	contains(t, n.docker(t, "info"), "Swarm: inactive")
}

// TestTasksThatEnd covers restart policies and what is said about failures.
func TestTasksThatEnd(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	create := func(t *testing.T, name string, args ...string) {
		t.Helper()
		n.service(t, name, append([]string{"-d"}, args...)...)
	}
	const states = "{{.Name}} {{.DesiredState}} {{.CurrentState}} {{.Error}}"

	t.Run("complete", func(t *testing.T) {
		create(t, "once", "--restart-condition", "none", "app:1", "exit", "0")
		n.awaitTask(t, "once", states, "complete")
		if tasks := n.tasks(t, "once", states); len(tasks) != 1 {
			t.Errorf("tasks %q", tasks)
		}
	})
	t.Run("attempts end", func(t *testing.T) {
		create(t, "bad", "--restart-condition", "on-failure", "--restart-max-attempts", "2", "app:1", "exit", "7")
		await(t, "three failures", func() error {
			failed := 0
			for _, line := range n.tasks(t, "bad", states) {
				if strings.Contains(line, "non-zero exit (7)") {
					failed++
				}
			}
			if failed != 3 {
				return fmt.Errorf("%d failures", failed)
			}
			return nil
		})
		time.Sleep(time.Second) // for a fourth that must not come
		if tasks := n.tasks(t, "bad", states); len(tasks) != 3 {
			t.Errorf("tasks %q", tasks)
		}
	})
	t.Run("fits nowhere", func(t *testing.T) {
		create(t, "nofit", "--constraint", "node.labels.none==x", "app:1", "sleep")
		n.awaitTask(t, "nofit", states, "pending", "no suitable node", "constraints not satisfied")
		n.docker(t, "node", "update", "--label-add", "none=x", n.docker(t, "node", "ls", "-q"))
		n.awaitContainers(t, "nofit", 1)
	})
	t.Run("too little memory", func(t *testing.T) {
		create(t, "large", "--reserve-memory", "900G", "app:1", "sleep")
		n.awaitTask(t, "large", states, "pending", "insufficient resources")
	})
	t.Run("missing image", func(t *testing.T) {
		create(t, "noimg", "127.0.0.1:1/nothing:1")
		n.awaitTask(t, "noimg", states, "rejected", "127.0.0.1:1/nothing:1")
	})
	t.Run("missing mount source", func(t *testing.T) {
		create(t, "nomount", "--mount", "type=bind,source=/no/such/folder,target=/x", "app:1", "sleep")
		n.awaitTask(t, "nomount", states, "rejected", "/no/such/folder")
	})
	t.Run("unhealthy", func(t *testing.T) {
		n.image(t, "app:sick", `"Healthcheck":{"Test":["CMD","/prog","exit","1"],"Interval":200000000,"Timeout":1000000000,"Retries":2}`)
		create(t, "sick", "app:sick", "sleep")
		n.awaitTask(t, "sick", states, "unhealthy")
	})
	t.Run("grace period", func(t *testing.T) {
		// Under an init that ignores nothing, the program's own trap decides.
		create(t, "polite", "--stop-grace-period", "10s", "app:1", "trap", "0")
		id := n.awaitContainers(t, "polite", 1)[0]
		await(t, "the program waits", func() error {
			if out := n.docker(t, "logs", id); !strings.Contains(out, "ready") {
				return fmt.Errorf("it wrote %q", out)
			}
			return nil
		})
		n.docker(t, "service", "rm", "polite")
		if took := await(t, "it ends", func() error {
			if ids, err := n.containers("polite"); err != nil || len(ids) > 0 {
				return fmt.Errorf("%v, %w", ids, err)
			}
			return nil
		}); took > 5*time.Second {
			t.Errorf("a program that heeds SIGTERM took %v", took)
		}
	})
}

// TestServicesSpec checks that what a service says reaches the container.
func TestServicesSpec(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	src := n.dir + "/src"
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(src+"/file", []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.service(t, "full", "--limit-memory", "64M", "--limit-cpu", "0.5", "--limit-pids", "50", "--env", "A=b c", "--hostname", "h-{{.Task.Slot}}",
		"--user", "1000:1000", "--workdir", "/tmp", "--read-only", "--init", "--stop-signal", "SIGUSR1", "--host", "db:10.1.2.3", "--dns", "10.9.9.9",
		"--mount", "type=bind,source="+src+",target=/src,readonly", "--mount", "type=tmpfs,target=/t,tmpfs-size=1048576", "--mount", "type=volume,source=vol,target=/v",
		"--cap-drop", "ALL", "--ulimit", "nofile=100:200", "--sysctl", "net.ipv4.ip_unprivileged_port_start=1", "--container-label", "x=y",
		"app:1", "sleep")
	id := n.awaitContainers(t, "full", 1)[0]
	for template, want := range map[string]string{
		"{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}": "67108864 500000000 50",
		"{{.Config.Hostname}}":                    "h-1",
		"{{.Config.User}} {{.Config.WorkingDir}}": "1000:1000 /tmp",
		"{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Init}} {{.Config.StopSignal}}": "true true SIGUSR1",
		`{{index .Config.Labels "x"}}`: "y",
		"{{.State.Status}}":            "running",
	} {
		if got := n.inspect(t, id, template); got != want {
			t.Errorf("%s: %q, want %q", template, got, want)
		}
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"b c", []string{"env", "A"}},
		{"bound", []string{"read", "/src/file"}},
		{"10.1.2.3", []string{"read", "/etc/hosts"}},
		{"10.9.9.9", []string{"read", "/etc/resolv.conf"}},
		{"h-1", []string{"read", "/etc/hostname"}},
		{"67108864", nil},
	} {
		if c.args == nil {
			continue
		}
		contains(t, n.docker(t, append([]string{"exec", id, "/prog"}, c.args...)...), c.want)
	}
	for _, path := range []string{"/file", "/src/other"} {
		if msg := n.dockerFails(t, "exec", "-u", "0", id, "/prog", "write", path, "x").stderr; !strings.Contains(msg, "read-only") {
			t.Errorf("writing %s: %s", path, msg)
		}
	}
	n.docker(t, "exec", "-u", "0", id, "/prog", "write", "/t/file", "x")
	contains(t, n.docker(t, "volume", "ls", "-q"), "vol")
}
