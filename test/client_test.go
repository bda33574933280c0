package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestClient: legion is docker's command line under its own name.
func TestClient(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.legion(t, "service", "create", "-q", "--no-resolve-image", "--name", "web", "--replicas", "2", "app:1", "sleep")
	for _, args := range [][]string{
		{"service", "ls"}, {"service", "ps", "-q", "web"}, {"node", "ls"}, {"image", "ls", "-q"}, {"volume", "ls"}, {"network", "ls"}, {"ps", "-q"},
		{"service", "inspect", "--pretty", "web"}, {"config", "ls"}, {"secret", "ls"}, {"stack", "ls"},
	} {
		ours, theirs := n.legion(t, args...), n.docker(t, args...)
		if ours != theirs {
			t.Errorf("%q: legion says\n%s\nand docker\n%s", args, ours, theirs)
		}
	}
	for _, arg := range []string{"--help", "-h", "help"} {
		contains(t, n.legion(t, arg), "Usage:  legion")
	}
	contains(t, n.legion(t, "service", "create", "--help"), "Usage:  legion service create")
	contains(t, n.legion(t, "daemon", "--help"), "--data-root")
	contains(t, n.legion(t, "--version"), "Legion version")
	contains(t, n.legion(t, "completion", "bash"), "__start_legion")
	contains(t, n.legion(t, "__complete", "service", "cr"), "create")
	contains(t, n.legion(t, "__complete", "service", "inspect", "w"), "web")
	version := n.legion(t, "version")
	for _, part := range []string{"Client: Legion", "Server: Legion", "runc", "containerd", "shim"} {
		contains(t, version, part)
	}
	contains(t, n.legion(t, "swarm", "join-token", "worker"), "legion swarm join --token SWMTKN-1-")
	contains(t, n.docker(t, "swarm", "join-token", "worker"), "docker swarm join --token SWMTKN-1-")
	if _, err := n.command(legionBinary(t), "nonsense"); err == nil || !strings.Contains(err.Error(), "legion: unknown command: legion nonsense") {
		t.Errorf("an unknown command: %v", err)
	}
	if _, err := n.command(legionBinary(t), "service", "rm"); err == nil || !strings.Contains(err.Error(), "legion service rm") {
		t.Errorf("a missing argument: %v", err)
	}
}

// TestClientFindsItsNode: which daemon legion talks to.
func TestClientFindsItsNode(t *testing.T) {
	needBinary(t)
	dir := t.TempDir()
	say := func(env []string, args ...string) string {
		cmd := exec.Command(legionBinary(t), args...)
		cmd.Env = append(append(os.Environ(), "DOCKER_CONFIG="+dir, "DOCKER_HOST=", "DOCKER_CONTEXT="), env...)
		out, _ := cmd.CombinedOutput() // nobody listens there
		return string(out)
	}
	contains(t, say(nil, "context", "inspect", "-f", "{{.Endpoints.docker.Host}}"), "unix:///run/legion/legion.sock")
	contains(t, say([]string{"DOCKER_HOST=unix:///tmp/env"}, "ps"), "/tmp/env")
	contains(t, say(nil, "-H", "unix:///tmp/flag", "ps"), "/tmp/flag")
	say(nil, "context", "create", "far", "--docker", "host=unix:///tmp/context")
	contains(t, say(nil, "--context", "far", "ps"), "/tmp/context")
	contains(t, say([]string{"DOCKER_CONTEXT=far"}, "ps"), "/tmp/context")
	contains(t, say([]string{"DOCKER_CONTEXT=far"}, "--context", "default", "context", "inspect", "-f", "{{.Endpoints.docker.Host}}"), "unix:///run/legion/legion.sock")
	say(nil, "context", "use", "far")
	contains(t, say(nil, "ps"), "/tmp/context")
}
