package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// stream is a stock client that goes on until stopped.
type stream struct {
	mu       sync.Mutex
	out, err bytes.Buffer
	cmd      *exec.Cmd
}

// half writes to one of the stream's buffers.
type half struct {
	s *stream
	b *bytes.Buffer
}

func (h half) Write(p []byte) (int, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.b.Write(p)
}

func (n *node) stream(t *testing.T, args ...string) *stream {
	t.Helper()
	s := &stream{cmd: exec.Command("docker", args...)}
	s.cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket, "DOCKER_CONFIG="+n.dir+"/client", "DOCKER_CLI_HINTS=false", "DOCKER_CONTEXT=")
	s.cmd.Stdout, s.cmd.Stderr = half{s, &s.out}, half{s, &s.err}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() })
	return s
}

func (s *stream) text() (out, err string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String(), s.err.String()
}

// shows waits until the client has written a text that matches.
func (s *stream) shows(t *testing.T, pattern string) time.Duration {
	t.Helper()
	re := regexp.MustCompile(pattern)
	return await(t, "the client shows "+pattern, func() error {
		if out, err := s.text(); !re.MatchString(out) && !re.MatchString(err) {
			return fmt.Errorf("it shows %q and %q", out, err)
		}
		return nil
	})
}

func matches(t *testing.T, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(text) {
		t.Errorf("not %s: %q", pattern, text)
	}
}

// The stock client reads the logs of tasks on two nodes.
func TestServiceLogs(t *testing.T) {
	n := swarmNode(t)
	w := n.worker(t)
	n.image(t, "app:1", "")
	w.docker(t, "image", "load", "-q", "-i", n.dir+"/image.tar")
	n.service(t, "talk", "--replicas", "2", "--replicas-max-per-node", "1", "--log-driver", "json-file", "--log-opt", "labels=tier",
		"--container-label", "tier=front", "app:1", "all", "echo", "one", ",", "err", "two", ",", "echo", "three", ",", "sleep")
	n.service(t, "plain", "-d", "--replicas", "2", "app:1", "all", "echo", "one", ",", "echo", "three", ",", "sleep")
	n.awaitReplicas(t, "plain", "2/2")
	id := n.docker(t, "service", "inspect", "-f", "{{.ID}}", "talk")
	task := n.tasks(t, "talk", "{{.ID}}")[0]
	name := n.docker(t, "info", "-f", "{{.Name}}")
	for _, c := range []struct {
		args  []string
		lines int
		each  string
	}{
		{[]string{"talk"}, 4, `^talk\.[12]\.[a-z0-9]{12}@` + name + ` +\| (one|three)$`},
		{[]string{id, "--no-trunc"}, 4, `^talk\.[12]\.[a-z0-9]{25}@` + name + ` +\| (one|three)$`},
		{[]string{"talk", "--no-task-ids"}, 4, `^talk\.[12]@` + name + ` +\| `},
		{[]string{"talk", "--no-resolve", "--no-task-ids"}, 4, `^` + id + `\.[12]@[a-z0-9]{25} +\| `},
		{[]string{"talk", "--raw"}, 4, `^(one|three)$`},
		{[]string{"talk", "-t", "--raw"}, 4, `^20\d\d-\d\d-\d\dT[0-9:.]+Z (one|three)$`},
		{[]string{"talk", "--details"}, 4, `\| tier=front (one|three)$`},
		{[]string{"plain", "--tail", "1"}, 2, `three$`},
		{[]string{"talk", "--tail", "0"}, 0, ``},
		{[]string{"talk", "--since", "1h"}, 4, ``},
		{[]string{"talk", "--since", time.Now().Add(time.Hour).Format(time.RFC3339)}, 0, ``},
		{[]string{task}, 2, `^talk\.[12]\.`},
	} {
		out := n.docker(t, append([]string{"service", "logs"}, c.args...)...)
		lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
		if len(lines) != c.lines {
			t.Errorf("%q: %d lines, want %d: %s", c.args, len(lines), c.lines, out)
		}
		for _, l := range lines {
			matches(t, l, c.each)
		}
	}
	contains(t, n.dockerFails(t, "service", "logs", "nosuch").Error(), "no such task or service")
	n.service(t, "quiet", "-d", "--log-driver", "none", "app:1", "all", "echo", "lost", ",", "sleep")
	n.awaitReplicas(t, "quiet", "1/1")
	contains(t, n.dockerFails(t, "service", "logs", "quiet").Error(), "does not support reading")
	n.service(t, "empty", "-d", "--replicas", "0", "app:1")
	if out := n.docker(t, "service", "logs", "empty"); out != "" {
		t.Errorf("a service without tasks says %q", out)
	}
	n.service(t, "term", "-d", "-t", "app:1", "all", "echo", "hello", ",", "sleep")
	n.awaitReplicas(t, "term", "1/1")
	contains(t, n.dockerFails(t, "service", "logs", "term").Error(), "only supported with --raw")
	matches(t, n.docker(t, "service", "logs", "--raw", "term"), `^hello\r?$`)

	t.Run("a node vanishes", func(t *testing.T) {
		follow := n.stream(t, "service", "logs", "-f", "talk")
		follow.shows(t, `(?s)three.*three`)
		w.crash(t)
		began := time.Now()
		said := n.dockerFails(t, "service", "logs", "talk").Error()
		contains(t, said, "incomplete logs")
		matches(t, said, `node \S+ \([a-z0-9]{25}\)`)
		if took := time.Since(began); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		follow.shows(t, `the logs of node \S+ \([a-z0-9]{25}\) can't be read`)
		w.start(t)
		follow.shows(t, `the logs of node \S+ \([a-z0-9]{25}\) are read again`)
		out, _ := follow.text()
		lines := strings.Split(strings.TrimSpace(out), "\n")
		slices.Sort(lines)
		if len(slices.Compact(slices.Clone(lines))) != len(lines) {
			t.Errorf("lines came twice: %s", out)
		}
	})
}

// The stock client hears what happens to the swarm.
func TestSwarmEvents(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	began := time.Now().Format(time.RFC3339Nano)
	id := n.docker(t, "info", "-f", "{{.Swarm.NodeID}}")
	const format = "{{.Type}} {{.Action}} {{.Actor.Attributes}}"
	all := n.stream(t, "events", "-f", "scope=swarm", "--format", format)
	updates := n.stream(t, "events", "-f", "type=service", "-f", "event=update", "-f", "service=web", "--format", format)
	await(t, "both listen", func() error {
		n.docker(t, "node", "update", "--label-add", "at="+fmt.Sprint(time.Now().UnixNano()), id)
		if out, _ := all.text(); !strings.Contains(out, "node update") {
			return fmt.Errorf("nothing yet: %q", out)
		}
		return nil
	})
	n.docker(t, "service", "create", "-d", "-q", "--no-resolve-image", "--name", "other", "--replicas", "0", "app:1")
	n.docker(t, "service", "create", "-d", "-q", "--no-resolve-image", "--name", "web", "--replicas", "1", "app:1")
	n.docker(t, "service", "scale", "-d", "web=2", "other=1")
	n.docker(t, "service", "update", "-d", "-q", "--no-resolve-image", "--image", "app:2", "web")
	n.docker(t, "node", "update", "--availability", "drain", id)
	for _, kind := range []string{"secret", "config"} {
		n.pipe(t, "x", kind, "create", "thing", "-")
		n.docker(t, kind, "rm", "thing")
	}
	n.docker(t, "service", "rm", "web")
	for _, want := range []string{
		`service create map\[name:web\]`, `service update map\[name:web replicas.new:2 replicas.old:1\]`,
		`service update map\[image.new:app:2 image.old:app:1 name:web`, `node update map\[availability.new:drain availability.old:active name:`,
		`secret create map\[name:thing\]`, `secret remove map\[name:thing\]`, `config create map\[name:thing\]`, `config remove map\[name:thing\]`,
		`service remove map\[name:web\]`,
	} {
		all.shows(t, want)
	}
	updates.shows(t, `image.new:app:2`)
	if out, _ := updates.text(); strings.Contains(out, "create") || strings.Contains(out, "other") {
		t.Errorf("filtered for updates of web: %s", out)
	}
	past := n.docker(t, "events", "--since", began, "--until", time.Now().Format(time.RFC3339Nano), "-f", "scope=swarm", "--format", format)
	out, _ := all.text()
	lines := strings.Split(strings.TrimSpace(past), "\n")
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		if !slices.Contains(lines, l) {
			t.Errorf("heard, and not in the past: %s", l)
		}
	}
	if count := strings.Count(past, "service create map[name:web]"); count != 1 {
		t.Errorf("told %d times: %s", count, past)
	}
}

// pipe runs the stock client with an input.
func (n *node) pipe(t *testing.T, input string, args ...string) {
	t.Helper()
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket, "DOCKER_CONFIG="+n.dir+"/client", "DOCKER_CONTEXT=")
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("docker %q: %v: %s", args, err, out)
	}
}
