package test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestContainers covers what docker does with a task's container.
func TestContainers(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.service(t, "talk", "--replicas", "2", "app:1", "all", "echo", "line", "1", ",", "echo", "line", "2", ",", "echo", "line", "3", ",", "err", "other", ",", "sleep")
	id := n.awaitContainers(t, "talk", 2)[0]

	t.Run("service logs", func(t *testing.T) {
		await(t, "three lines of each task", func() error {
			out, err := n.command("docker", "service", "logs", "--raw", "talk")
			if err == nil && strings.Count(out, "line") != 6 {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
		if out := n.docker(t, "service", "logs", "--raw", "talk"); strings.Contains(out, "other") {
			t.Errorf("standard error came with standard output: %q", out)
		}
		out := n.docker(t, "service", "logs", "talk")
		contains(t, out, "talk.1.")
		contains(t, out, "talk.2.")
		if out := n.docker(t, "service", "logs", "--raw", "--tail", "2", "talk"); strings.Count(out, "line 1") != 0 {
			t.Errorf("--tail 2: %q", out)
		}
		if out := n.docker(t, "service", "logs", "--since", "2100-01-01", "talk"); out != "" {
			t.Errorf("--since the future: %q", out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if out := n.docker(t, "logs", id); out != "line 1\nline 2\nline 3" {
			t.Errorf("logs: %q", out)
		}
		// One of the last two is the other stream's: the kernel keeps no order between streams.
		contains(t, n.docker(t, "logs", "-t", "--tail", "2", id), "Z line 3")
	})
	t.Run("follow ends with the container", func(t *testing.T) {
		n.docker(t, "run", "-d", "--name", "short", "app:1", "all", "echo", "first", ",", "exit", "3")
		if out := n.docker(t, "logs", "-f", "short"); out != "first" {
			t.Errorf("logs -f: %q", out)
		}
		if out := n.docker(t, "wait", "short"); out != "3" {
			t.Errorf("wait: %q", out)
		}
		n.docker(t, "rm", "short")
	})
	t.Run("exec", func(t *testing.T) {
		if out := n.docker(t, "exec", "-e", "X=1 2", id, "/prog", "env", "X"); out != "1 2" {
			t.Errorf("env: %q", out)
		}
		if e := n.dockerFails(t, "exec", id, "/prog", "exit", "3"); e.status() != 3 {
			t.Errorf("status %d, want 3", e.status())
		}
		if e := n.dockerFails(t, "exec", id, "/nothing"); e.status() != 127 {
			t.Errorf("status %d of a program that is missing, want 127: %v", e.status(), e)
		}
		cmd := exec.Command("docker", "exec", "-i", id, "/prog", "cat")
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket)
		cmd.Stdin = strings.NewReader("through\n")
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != "through\n" {
			t.Errorf("cat: %q, %v", out, err)
		}
	})
	t.Run("top and stats", func(t *testing.T) {
		contains(t, n.docker(t, "top", id), "/prog")
		out := n.docker(t, "stats", "--no-stream", "--format", "{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}", id)
		contains(t, out, "%")
		if strings.Contains(out, "--") || strings.HasPrefix(out, "0.00% 0B") {
			t.Errorf("stats: %q", out)
		}
	})
	t.Run("copy", func(t *testing.T) {
		file := n.dir + "/copied"
		if err := os.WriteFile(file, []byte("over"), 0o644); err != nil {
			t.Fatal(err)
		}
		n.docker(t, "cp", file, id+":/tmp/copied")
		if out := n.docker(t, "exec", id, "/prog", "read", "/tmp/copied"); out != "over" {
			t.Errorf("copied in: %q", out)
		}
		n.docker(t, "cp", id+":/tmp/copied", file+"2")
		if b, err := os.ReadFile(file + "2"); err != nil || string(b) != "over" {
			t.Errorf("copied out: %q, %v", b, err)
		}
	})
	t.Run("stop is an end like any other", func(t *testing.T) {
		n.docker(t, "stop", "-t", "1", id)
		await(t, "a new container", func() error {
			ids, err := n.containers("talk")
			if err == nil && (len(ids) != 2 || ids[0] == id || ids[1] == id) {
				err = fmt.Errorf("containers %v", ids)
			}
			return err
		})
	})
}

// TestEvents checks that what happens is told, while it happens.
func TestEvents(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "events", "--format", "{{.Scope}} {{.Type}} {{.Action}}")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	// The stream is open when it says something: poke it until it does.
	want := map[string]bool{"swarm service create": true, "swarm service remove": true, "local container create": true, "local container start": true, "local container die": true}
	for i := 0; len(want) > 0; i++ {
		name := fmt.Sprint("s", i)
		n.service(t, name, "app:1", "sleep")
		n.docker(t, "service", "rm", name)
		n.awaitContainers(t, name, 0)
		for more := true; more && len(want) > 0; {
			select {
			case line, ok := <-lines:
				if !ok {
					t.Fatalf("the stream ended; not told: %v", want)
				}
				delete(want, line)
			case <-time.After(time.Second):
				more = false
			}
		}
		if i == 5 {
			t.Fatalf("not told: %v", want)
		}
	}
	cancel()
	_ = cmd.Wait()
}

// TestImages covers what one node does with images.
func TestImages(t *testing.T) {
	n := startedNode(t)
	n.image(t, "app:1", `"Labels":{"k":"v"}`)
	contains(t, n.docker(t, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"), "app:1")
	if out := n.docker(t, "image", "inspect", "-f", `{{index .Config.Labels "k"}} {{.Os}}`, "app:1"); out != "v linux" {
		t.Errorf("inspect: %q", out)
	}
	n.docker(t, "tag", "app:1", "other:x")
	contains(t, n.docker(t, "history", "other:x"), "pack-image")
	n.docker(t, "save", "-o", n.dir+"/saved.tar", "other:x")
	n.docker(t, "rmi", "app:1", "other:x")
	if out := n.docker(t, "image", "ls", "-q"); out != "" {
		t.Errorf("left: %q", out)
	}
	contains(t, n.docker(t, "load", "-i", n.dir+"/saved.tar"), "other:x")
	if out := n.docker(t, "run", "--rm", "other:x", "echo", "hello"); out != "hello" {
		t.Errorf("run: %q", out)
	}
	contains(t, n.dockerFails(t, "rmi", "nothing:1").stderr, "nothing:1")
	contains(t, n.dockerFails(t, "run", "--pull", "never", "nothing:1").stderr, "nothing:1")
}

// TestDemoImages checks that what make up shows is what it says.
func TestDemoImages(t *testing.T) {
	n := swarmNode(t)
	if out, err := exec.Command(root+"/demo/build-images", root+"/build/images").CombinedOutput(); err != nil {
		t.Fatalf("build-images: %v\n%s", err, out)
	}
	for _, image := range []string{"web2", "redis"} {
		n.docker(t, "load", "-q", "-i", root+"/build/images/"+image+".tar")
	}
	n.service(t, "redis", "redis:7")
	id := n.awaitContainers(t, "redis", 1)[0]
	await(t, "redis answers", func() error {
		out, err := n.command("docker", "exec", id, "/usr/bin/redis-cli", "ping")
		if err == nil && strings.TrimSpace(out) != "PONG" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
	n.service(t, "web", "web:2")
	id = n.awaitContainers(t, "web", 1)[0]
	if out := n.inspect(t, id, "{{.State.Health.Status}}"); out != "healthy" {
		t.Errorf("the server's health check says %q", out)
	}
	address := n.inspect(t, id, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
	await(t, "the web server answers at its address", func() error {
		out, err := exec.Command("curl", "-sS", "-m", "2", "http://"+address+":8080/").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "version 2") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}
