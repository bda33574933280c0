package test

import (
	"fmt"
	"strings"
	"testing"
)

// TestAttachable has users' containers on a manager and on a worker take part in an
// attachable network.
func TestAttachable(t *testing.T) {
	s := newSwarm(t, []string{"one"}, []string{"two"})
	one, two := s.nodes["one"], s.nodes["two"]
	one.docker(t, "network", "create", "-d", "overlay", "--attachable", "--ipv6", "--subnet", "10.66.0.0/24", "a1")
	one.docker(t, "network", "create", "-d", "overlay", "p1")
	run := func(n *node, name string, args ...string) string {
		t.Helper()
		args = append([]string{"run", "-d", "--name", name}, args...)
		return strings.TrimSpace(n.docker(t, append(args, "--entrypoint", "/web", "app:1")...))
	}
	id1 := run(one, "c1", "--network", "a1", "--ip", "10.66.0.77")
	id2 := run(two, "c2", "--network", "a1", "--network-alias", "x")
	const addr, addr6 = "{{.NetworkSettings.Networks.a1.IPAddress}}", "{{.NetworkSettings.Networks.a1.GlobalIPv6Address}}"
	if got := one.inspect(t, id1, addr); got != "10.66.0.77\n" && got != "10.66.0.77" {
		t.Errorf("c1 has %q", got)
	}
	reaches := func(machine string, from *node, id string, to *node, target string) {
		t.Helper()
		inside := func(args ...string) (string, error) {
			o := s.try("ssh", machine, strings.Join(args, " "))
			return o.stdout + o.stderr, o.err
		}
		for _, host := range []string{to.inspect(t, target, addr), "[" + to.inspect(t, target, addr6) + "]"} {
			await(t, "an answer of "+host, func() error { return from.reaches(t, inside, id, host, target) })
		}
	}
	reaches("one", one, id1, two, id2)
	reaches("two", two, id2, one, id1)
	for _, c := range []struct {
		n          *node
		says, with string
	}{
		{two, "p1", "not manually attachable"},
		{two, "nosuch", "network nosuch not found"},
		{two, "a1 --ip 10.66.0.77", "Address already in use: 10.66.0.77"},
		{one, "a1 --ip 10.67.0.77", "none of its subnets"},
	} {
		args := append([]string{"run", "--rm", "--network"}, strings.Fields(c.says)...)
		contains(t, c.n.dockerFails(t, append(args, "app:1", "exit", "0")...).stderr, c.with)
	}
	refused := one.dockerFails(t, "network", "rm", "a1").stderr
	contains(t, refused, "c1 on node one")
	contains(t, refused, "c2 on node two")
	contains(t, two.docker(t, "network", "inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "a1"), "c2")
	contains(t, one.docker(t, "network", "inspect", "-f", "{{len .Peers}}", "a1"), "2")
	contains(t, one.docker(t, "network", "inspect", "--verbose", "-f", "{{json .Services}}", "a1"), `"Name":"c2"`)
	if out := one.docker(t, "node", "ps", "-q", "two"); strings.TrimSpace(out) != "" {
		t.Errorf("tasks of the worker: %q", out)
	}

	// It keeps its place over a restart of the daemon, and gets it anew with its own.
	up := func() error { _, err := two.command("docker", "ps"); return err }
	before := two.inspect(t, id2, addr)
	s.run(t, "ssh", "two", "kill -9 $(cat /run/legion/legion.pid)")
	await(t, "the worker's daemon", up)
	if after := two.inspect(t, id2, addr); after != before {
		t.Errorf("c2 had %s, and has %s", before, after)
	}
	reaches("one", one, id1, two, id2)
	s.run(t, "restart", "two")
	await(t, "the worker", up)
	two.docker(t, "start", "c2")
	reaches("one", one, id1, two, id2)

	two.docker(t, "network", "disconnect", "a1", "c2")
	await(t, "c2 is gone from a1", func() error {
		if out := one.dockerFails(t, "network", "rm", "a1").stderr; strings.Contains(out, "c2") {
			return fmt.Errorf("still there: %s", out)
		}
		return nil
	})
	two.docker(t, "network", "connect", "--ip", "10.66.0.78", "a1", "c2")
	reaches("one", one, id1, two, id2)
	one.docker(t, "rm", "-f", "c1")
	two.docker(t, "rm", "-f", "c2")
	one.docker(t, "network", "rm", "a1", "p1")
}
