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
	resolves := func(name string) {
		t.Helper()
		await(t, "the name "+name, func() error {
			pid := one.inspect(t, id1, "{{.State.Pid}}")
			o := s.try("ssh", "one", "nsenter --net=/proc/"+strings.TrimSpace(pid)+"/ns/net unshare -m sh -c 'echo nameserver 127.0.0.11 >/tmp/resolv && mount --bind /tmp/resolv /etc/resolv.conf && curl -gsS -m 2 http://"+name+":8080/'")
			if o.err != nil || !strings.Contains(o.stdout, id2[:12]) {
				return fmt.Errorf("%v: %s%s", o.err, o.stdout, o.stderr)
			}
			return nil
		})
	}
	resolves("c2")
	two.docker(t, "network", "disconnect", "a1", "c2")
	two.docker(t, "network", "connect", "--alias", "also", "a1", "c2")
	resolves("also")
	one.docker(t, "rm", "-f", "c1")
	two.docker(t, "rm", "-f", "c2")
	one.docker(t, "network", "rm", "a1", "p1")
}

// TestNetworksOfNodes has the swarm's networks made after what each node says, and
// the network of the routing mesh made anew.
func TestNetworksOfNodes(t *testing.T) {
	s := newSwarm(t, []string{"one"}, []string{"two"})
	one, two := s.nodes["one"], s.nodes["two"]
	device := func(machine string) string {
		return strings.TrimSpace(s.run(t, "ssh", machine, "ip -o -4 route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/'"))
	}
	for i, machine := range []string{"one", "two"} {
		s.nodes[machine].docker(t, "network", "create", "--config-only", "--subnet", "10.77.0.0/24", "--ip-range", fmt.Sprintf("10.77.0.%d/28", 16+16*i), "--gateway", "10.77.0.1",
			"-o", "parent="+device(machine), "conf")
	}
	contains(t, two.dockerFails(t, "run", "--rm", "--network", "conf", "app:1", "exit", "0").stderr, "configuration network")
	one.docker(t, "network", "create", "-d", "macvlan", "--scope", "swarm", "--config-from", "conf", "--attachable", "lan")
	one.docker(t, "service", "create", "-q", "--no-resolve-image", "--name", "g", "--mode", "global", "--network", "lan", "--entrypoint", "/web", "app:1")
	id1, id2 := one.awaitContainers(t, "g", 1)[0], two.awaitContainers(t, "g", 1)[0]
	const addr = "{{.NetworkSettings.Networks.lan.IPAddress}}"
	if a1, a2 := one.inspect(t, id1, addr), two.inspect(t, id2, addr); a1 != "10.77.0.16" || a2 != "10.77.0.32" {
		t.Errorf("addresses %q and %q, each from its node's range", a1, a2)
	}
	inside := func(args ...string) (string, error) {
		o := s.try("ssh", "one", strings.Join(args, " "))
		return o.stdout + o.stderr, o.err
	}
	await(t, "an answer over the device", func() error { return one.reaches(t, inside, id1, two.inspect(t, id2, addr), id2) })
	two.docker(t, "run", "-d", "--name", "c3", "--network", "lan", "--entrypoint", "/web", "app:1")
	contains(t, one.dockerFails(t, "network", "rm", "lan").stderr, "service g and container c3 on node two")
	contains(t, two.dockerFails(t, "network", "rm", "conf").stderr, "in use by network lan")
	two.docker(t, "rm", "-f", "c3")
	one.docker(t, "service", "rm", "g")
	two.awaitContainers(t, "g", 0)
	one.docker(t, "network", "rm", "lan")
	await(t, "lan is gone from the worker", func() error {
		_, err := two.command("docker", "network", "rm", "conf")
		return err
	})

	// The ingress network: removed and made anew, with another subnet.
	one.docker(t, "service", "create", "-q", "--no-resolve-image", "--name", "p", "-p", "8080:8080", "--entrypoint", "/web", "app:1")
	if status, out := one.api(t, "DELETE", "/networks/ingress", ""); status != 409 || !strings.Contains(out, "service p depends on it") { // docker asks its user first
		t.Errorf("%d %s", status, out)
	}
	one.docker(t, "service", "rm", "p")
	if status, out := one.api(t, "DELETE", "/networks/ingress", ""); status != 204 {
		t.Fatalf("%d %s", status, out)
	}
	contains(t, one.dockerFails(t, "service", "create", "--no-resolve-image", "--name", "p", "-p", "8080:8080", "app:1").stderr, "no ingress network is present")
	one.docker(t, "network", "create", "-d", "overlay", "--ingress", "--subnet", "10.11.0.0/16", "--gateway", "10.11.0.2", "-o", "com.docker.network.driver.mtu=1200", "mesh")
	contains(t, one.dockerFails(t, "network", "create", "-d", "overlay", "--ingress", "mesh2").stderr, "ingress network (mesh) already present")
	one.docker(t, "service", "create", "-q", "--no-resolve-image", "--name", "p", "-p", "8080:8080", "--entrypoint", "/web", "app:1")
	await(t, "all nodes are in the mesh", func() error {
		out := one.docker(t, "network", "inspect", "--verbose", "-f", "{{len .Peers}} {{(index .Services \"p\").VIP}} {{(index .Services \"p\").Ports}}", "mesh")
		if !strings.HasPrefix(out, "2 10.11.0.") || !strings.Contains(out, "Target: 8080, Publish: 8080") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	one.docker(t, "service", "rm", "p")
}
