package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ip runs iproute2's command.
func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// island is a network namespace with one cable to the host: at 10.213.N.2, the
// host at 10.213.N.1. It returns what runs a command in it.
func island(t *testing.T, number int) []string {
	t.Helper()
	name := fmt.Sprintf("legion-test-%d", number)
	ip(t, "netns", "add", name)
	t.Cleanup(func() { ip(t, "netns", "del", name) }) // the cable goes with it
	host, addr := fmt.Sprintf("lgt%d", number), fmt.Sprintf("10.213.%d.", number)
	ip(t, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", name)
	ip(t, "addr", "add", addr+"1/24", "dev", host)
	ip(t, "link", "set", host, "up")
	ip(t, "-n", name, "addr", "add", addr+"2/24", "dev", "eth0")
	ip(t, "-n", name, "link", "set", "eth0", "up")
	ip(t, "-n", name, "link", "set", "lo", "up")
	ip(t, "-n", name, "route", "add", "10.213.0.0/16", "via", addr+"1") // and nothing else, so that no registry is waited for
	return []string{"nsenter", "--net=/run/netns/" + name}
}

// dockerd is Debian's, not started.
func dockerd(t *testing.T, via []string) *node {
	t.Helper()
	n := newNode(t)
	n.via = via
	if out, err := exec.Command(root+"/scripts/fetch-dockerd", root+"/build/dockerd").CombinedOutput(); err != nil {
		t.Fatalf("fetch-dockerd: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(n.dir))
		for _, d := range append(dirs, "/sys/fs/cgroup/"+filepath.Base(n.dir)) {
			_ = os.Remove(d)
		}
	})
	return n
}

// startDockerd runs it until it answers. It changes nothing of the host.
func (n *node) startDockerd(t *testing.T) {
	t.Helper()
	dir, err := filepath.Abs(root + "/build/dockerd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.dir+"/daemon.json", []byte("{}"), 0o600); err != nil { // not the host's
		t.Fatal(err)
	}
	log, err := os.OpenFile(n.dir+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.launch(t, []string{
		dir + "/bin/dockerd", "--data-root", n.data, "--exec-root", n.exec, "--pidfile", n.dir + "/pid", "-H", "unix://" + n.socket,
		"--config-file", n.dir + "/daemon.json", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none",
		"--storage-driver", "vfs", "--cgroup-parent", "/" + filepath.Base(n.dir),
	}, []string{"PATH=" + dir + "/bin:" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + dir + "/lib"}, log)
	n.awaitAnswer(t)
}

// id is the node's in its swarm.
func (n *node) id(t *testing.T) string {
	t.Helper()
	return n.docker(t, "info", "-f", "{{.Swarm.NodeID}}")
}

// awaitNode waits until a manager shows a node's status so.
func (n *node) awaitNode(t *testing.T, id, status string) time.Duration {
	t.Helper()
	return await(t, "the node is "+status, func() error {
		out, err := n.command("docker", "node", "inspect", "-f", "{{.Status.State}}", id)
		if got := strings.TrimSpace(out); err == nil && got != status {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// TestStockDockerdIsAWorker runs Debian's dockerd and a legion side by side as
// workers of a legion manager.
func TestStockDockerdIsAWorker(t *testing.T) {
	m := newNode(t)
	// Made before the namespaces, to go after them.
	stock, own := dockerd(t, nil), newNode(t)
	stock.via, own.via = island(t, 71), island(t, 72)
	t.Cleanup(func() { own.end(t); stock.end(t) })
	m.start(t)
	m.docker(t, "swarm", "init", "--advertise-addr", "10.213.71.1")
	own.start(t)
	stock.startDockerd(t)
	token := m.docker(t, "swarm", "join-token", "-q", "worker")
	workers := map[*node]string{}
	for _, n := range []*node{own, stock} {
		began := time.Now()
		n.docker(t, "swarm", "join", "--token", token, "10.213.71.1:2377")
		workers[n] = n.id(t)
		m.awaitNode(t, workers[n], "ready")
		t.Logf("joined after %v", time.Since(began).Round(time.Millisecond))
		n.image(t, "app:1", "")
	}
	contains(t, stock.docker(t, "info", "-f", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"), "active false")
	contains(t, stock.docker(t, "info", "-f", "{{json .Swarm.RemoteManagers}}"), "10.213.71.1:2377")
	contains(t, stock.dockerFails(t, "node", "ls").stderr, "not a swarm manager")

	secret := m.dir + "/secret"
	if err := os.WriteFile(secret, []byte("hidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.docker(t, "secret", "create", "s", secret)
	m.docker(t, "config", "create", "c", secret)
	m.service(t, "web", "--mode", "global", "--constraint", "node.role==worker", "--network", "host", "--secret", "s", "--config", "c",
		"--env", "NODE={{.Node.ID}}", "--limit-memory", "64M", "--stop-grace-period", "1s", "app:1", "sleep")
	for n, id := range workers {
		c := n.awaitContainers(t, "web", 1)[0]
		contains(t, n.docker(t, "exec", c, "/prog", "read", "/run/secrets/s"), "hidden")
		contains(t, n.docker(t, "exec", c, "/prog", "read", "/c"), "hidden")
		contains(t, n.docker(t, "exec", c, "/prog", "env", "NODE"), id)
		if got := n.inspect(t, c, "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}{{.HostConfig.Memory}}"); got != "host 67108864" {
			t.Errorf("networks and memory are %s", got)
		}
	}

	t.Run("logs", func(t *testing.T) {
		m.service(t, "talk", "--mode", "global", "--constraint", "node.role==worker", "--network", "host", "-d", "--restart-condition", "none", "app:1", "echo", "a line")
		await(t, "a line of each", func() error {
			out, err := m.command("docker", "service", "logs", "talk")
			if got := strings.Count(out, "a line"); err == nil && got != 2 {
				err = fmt.Errorf("%d lines", got)
			}
			return err
		})
		m.docker(t, "service", "rm", "talk")
	})
	t.Run("update", func(t *testing.T) {
		before := stock.awaitContainers(t, "web", 1)[0]
		m.docker(t, "service", "update", "-q", "--env-add", "A=b", "web")
		for n := range workers {
			if c := n.awaitContainers(t, "web", 1)[0]; c == before {
				t.Error("the container is the old one")
			} else {
				contains(t, n.docker(t, "exec", c, "/prog", "env", "A"), "b")
			}
		}
	})
	t.Run("a container dies", func(t *testing.T) {
		before := stock.awaitContainers(t, "web", 1)[0]
		stock.docker(t, "kill", before)
		await(t, "another one", func() error {
			now, err := stock.containers("web")
			if err == nil && (len(now) != 1 || now[0] == before) {
				err = fmt.Errorf("containers %v", now)
			}
			return err
		})
	})
	t.Run("drain", func(t *testing.T) {
		m.docker(t, "node", "update", "--availability", "drain", workers[stock])
		stock.awaitContainers(t, "web", 0)
		own.awaitContainers(t, "web", 1)
		m.docker(t, "node", "update", "--availability", "active", workers[stock])
		stock.awaitContainers(t, "web", 1)
	})
	t.Run("the managers' daemon starts again", func(t *testing.T) {
		before := map[*node]string{}
		for n := range workers {
			before[n] = n.awaitContainers(t, "web", 1)[0]
		}
		m.stop(t)
		m.start(t)
		for n, id := range workers {
			m.awaitNode(t, id, "ready")
			if now := n.awaitContainers(t, "web", 1)[0]; now != before[n] {
				t.Error("a container was replaced")
			}
		}
	})
	t.Run("the worker's daemon starts again", func(t *testing.T) {
		stock.signal(t, syscall.SIGTERM)
		stock.startDockerd(t)
		m.awaitNode(t, workers[stock], "ready")
		stock.awaitContainers(t, "web", 1)
		before := own.awaitContainers(t, "web", 1)[0]
		own.stop(t)
		own.start(t)
		m.awaitNode(t, workers[own], "ready")
		if now := own.awaitContainers(t, "web", 1)[0]; now != before {
			t.Error("legion's container was replaced")
		}
	})
	t.Run("killed", func(t *testing.T) {
		m.service(t, "moves", "--constraint", "node.role==worker", "--network", "host", "--stop-grace-period", "1s", "--replicas", "2", "--restart-delay", "0s", "app:1", "sleep")
		own.awaitContainers(t, "moves", 1)
		began := time.Now()
		own.crash(t)
		m.awaitNode(t, workers[own], "down")
		stock.awaitContainers(t, "moves", 2)
		took := time.Since(began)
		t.Logf("a worker was killed; its task runs elsewhere after %v", took.Round(time.Millisecond))
		if took > 5*time.Second { // twice what is promised, and a slow machine
			t.Error("that is too long")
		}
		own.start(t)
		m.awaitNode(t, workers[own], "ready")
		own.awaitContainers(t, "moves", 0)
		own.awaitContainers(t, "web", 1)
	})
	t.Run("leave", func(t *testing.T) {
		for n, id := range workers {
			n.docker(t, "swarm", "leave")
			t.Logf("seen as down %v after it left", m.awaitNode(t, id, "down").Round(time.Millisecond))
			m.docker(t, "node", "rm", id)
			n.awaitContainers(t, "web", 0)
		}
		if out := m.docker(t, "node", "ls", "-q"); len(strings.Fields(out)) != 1 {
			t.Errorf("nodes: %s", out)
		}
	})
}

// end ends the daemon, before its network goes.
func (n *node) end(t *testing.T) {
	t.Helper()
	if n.running() {
		n.signal(t, syscall.SIGTERM)
	}
}
