package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const stackFile = `
services:
  front:
    image: app:1
    entrypoint: /web
    environment: {VERSION: "${VER:-one}"}
    networks: {default: {aliases: [web]}, back: {}}
    deploy: {replicas: 2, labels: {tier: front}}
    configs: [greeting]
  back:
    image: app:1
    command: sleep
    networks: [back]
    deploy: {mode: global}
networks:
  back: {driver: overlay, internal: true, ipam: {config: [{subnet: 10.40.0.0/24}]}, labels: {a: b}}
configs:
  greeting: {file: ./greeting.txt}
`

// TestStacks deploys, changes, removes and deploys again, with the stock client.
func TestStacks(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("greeting.txt", "hello")
	file, more := write("stack.yml", stackFile), write("more.yml", "services:\n  third: {image: 'app:1', command: sleep}\n")
	deploy := func(args ...string) {
		t.Helper()
		n.docker(t, append(append([]string{"stack", "deploy", "--detach=false", "--resolve-image", "never"}, args...), "demo")...)
	}
	contains(t, n.docker(t, "stack", "config", "-c", file), "tier: front")
	deploy("-c", file, "-c", more, "--with-registry-auth")
	contains(t, n.docker(t, "stack", "ls"), "demo      3")
	if got := len(strings.Fields(n.docker(t, "stack", "services", "-q", "demo"))); got != 3 {
		t.Errorf("%d services, want 3", got)
	}
	contains(t, n.docker(t, "network", "inspect", "-f", "{{.Internal}} {{(index .IPAM.Config 0).Subnet}} {{.Scope}}", "demo_back"), "true 10.40.0.0/24 swarm")
	contains(t, n.dockerFails(t, "network", "rm", "demo_back").stderr, "is in use by service demo_back, demo_front")
	contains(t, n.dockerFails(t, "network", "create", "-d", "overlay", "--subnet", "10.40.0.128/25", "x").stderr, "10.40.0.0/24 of network demo_back")
	ids := n.awaitContainers(t, "demo_front", 2)
	for _, id := range ids {
		addr := n.inspect(t, id, `{{(index .NetworkSettings.Networks "demo_back").IPAddress}}`)
		contains(t, addr, "10.40.0.")
		if err := n.reaches(t, onHost, ids[0], addr, id); err != nil {
			t.Error(err)
		}
	}
	service := n.docker(t, "service", "inspect", "-f", "{{json .Endpoint.VirtualIPs}}", "demo_front")
	if strings.Count(service, "NetworkID") != 2 {
		t.Errorf("virtual addresses: %s", service)
	}

	deploy("-c", file, "--prune")
	n.awaitContainers(t, "demo_third", 0)
	for i := range 2 { // at once, though tasks and networks are still going
		n.docker(t, "stack", "rm", "demo")
		deploy("-c", file)
		n.awaitReplicas(t, "demo_front", "2/2")
		t.Log("deployed again", i+1)
	}
	n.docker(t, "stack", "rm", "demo")
	ingress := n.docker(t, "network", "inspect", "-f", "{{.Id}}", "ingress")
	await(t, "nothing is left of overlays but the routing mesh", func() error {
		entries, err := filepath.Glob(filepath.Join(n.exec, "netns", "*"))
		entries = slices.DeleteFunc(entries, func(e string) bool { return strings.HasSuffix(e, "-"+ingress) })
		if err == nil && len(entries) > 0 {
			err = fmt.Errorf("namespaces %v", entries)
		}
		return err
	})
	if out := n.docker(t, "network", "ls", "-q", "-f", "scope=swarm"); len(strings.Fields(out)) != 1 {
		t.Errorf("networks of the swarm: %q, want ingress alone", out)
	}
}

// TestOverlay has tasks on two machines reach each other by address.
func TestOverlay(t *testing.T) {
	s := newSwarm(t, []string{"one"}, []string{"two"})
	one, two := s.nodes["one"], s.nodes["two"]
	one.docker(t, "network", "create", "-d", "overlay", "--ipv6", "o1")
	one.docker(t, "service", "create", "-q", "--no-resolve-image", "--name", "g", "--mode", "global", "--network", "o1", "--entrypoint", "/web", "app:1")
	const addr, addr6 = "{{.NetworkSettings.Networks.o1.IPAddress}}", "{{.NetworkSettings.Networks.o1.GlobalIPv6Address}}"
	id1, id2 := one.awaitContainers(t, "g", 1)[0], two.awaitContainers(t, "g", 1)[0]
	reaches := func(machine string, from *node, id string, to *node, target string) {
		t.Helper()
		inside := func(args ...string) (string, error) {
			o := s.try("ssh", machine, strings.Join(args, " "))
			return o.stdout + o.stderr, o.err
		}
		a, a6 := to.inspect(t, target, addr), to.inspect(t, target, addr6)
		for _, host := range []string{a, "[" + a6 + "]"} {
			await(t, "an answer of "+host, func() error {
				return from.reaches(t, inside, id, host, target)
			})
		}
	}
	reaches("one", one, id1, two, id2)
	reaches("two", two, id2, one, id1)
	contains(t, one.docker(t, "network", "inspect", "-f", "{{len .Peers}}", "o1"), "2")
	contains(t, two.docker(t, "network", "ls"), "o1")
	one.docker(t, "service", "update", "-q", "--force", "g")
	id1, id2 = one.awaitContainers(t, "g", 1)[0], two.awaitContainers(t, "g", 1)[0]
	reaches("one", one, id1, two, id2)
	one.docker(t, "service", "rm", "g")
	two.awaitContainers(t, "g", 0)
	one.docker(t, "network", "rm", "o1")
}

// onHost runs a program on this computer.
func onHost(args ...string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// reaches says why one container does not get an answer from another by address.
// run runs a program where the first one's processes can be seen.
func (n *node) reaches(t *testing.T, run func(args ...string) (string, error), from, host, target string) error {
	t.Helper()
	pid := n.inspect(t, from, "{{.State.Pid}}")
	out, err := run("nsenter", "--net=/proc/"+pid+"/ns/net", "curl", "-gsS", "-m", "2", "http://"+host+":8080/")
	if err == nil && !strings.Contains(out, target[:12]) {
		err = errors.New("another one answers")
	}
	if err != nil {
		return fmt.Errorf("from %s to %s (%s): %w: %s", from[:12], target[:12], host, err, out)
	}
	return nil
}
