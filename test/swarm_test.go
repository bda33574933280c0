package test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

const replicas = 10

// TestSwarm lets three managers and two workers fail in the ways that computers
// and networks do. After each, what was acknowledged is there, and the service
// has its containers, no fewer and no more.
func TestSwarm(t *testing.T) {
	began := time.Now()
	s := newSwarm(t, []string{"m1", "m2", "m3"}, []string{"w1", "w2"})
	s.nodes["m1"].service(t, "web", "--replicas", fmt.Sprint(replicas), "app:1", "sleep")
	where := s.exactly(t, "m1", "web", replicas)
	for _, n := range s.names {
		if on(where, n) != 2 {
			t.Errorf("%d containers on %s, want two on each", on(where, n), n)
		}
	}
	t.Logf("formed in %v", time.Since(began))
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"the leader's daemon crashes", s.testLeaderCrashes},
		{"the leader loses its power", s.testLeaderLosesPower},
		{"the leader is cut off", s.testLeaderCutOff},
		{"a manager does not hear the leader", s.testLeaderNotHeard},
		{"the leader's daemon stands still for a moment", s.testLeaderStalls},
		{"the leader's daemon and a worker's stand still for long", s.testDaemonsStall},
		{"every daemon stands still for long", s.testAllStall},
		{"a blip", s.testBlip},
		{"a worker dies and comes back", s.testWorkerDies},
		{"drain and return", s.testDrain},
		{"promote and demote", s.testPromote},
		{"everything rotates under load", s.testRotation},
		{"a node is removed by force", s.testRemoval},
		{"two of three managers stop and come back", s.testQuorumComesBack},
		{"everything reboots at once", s.testReboot},
		{"two of three managers are lost for good", s.testForce},
	} {
		start := time.Now()
		if !t.Run(test.name, test.run) {
			break
		}
		t.Logf("%s: %v", test.name, time.Since(start).Round(time.Millisecond))
	}
}

func (s *swarm) testLeaderCrashes(t *testing.T) {
	leader, others := s.leader(t, "m1")
	before := s.exactly(t, leader, "web", replicas)
	s.run(t, "ssh", leader, "kill -9 $(cat /run/legion/legion.pid)")
	t.Logf("a write after %v", s.writes(t, others[0]))
	await(t, "the daemon is back", func() error { return s.write(leader) })
	s.ready(t, others[0], s.names...)
	if now := s.exactly(t, leader, "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
	s.kept(t, "m1", "m2", "m3")
}

func (s *swarm) testLeaderLosesPower(t *testing.T) {
	leader, others := s.leader(t, "m1")
	s.cut(t, leader)
	t.Logf("a write after %v", s.writes(t, others[1]))
	t.Logf("replaced after %v", awaitFor(t, settleTimeout, "its tasks are replaced", func() error {
		where, err := s.running("web")
		if err == nil && len(where) != replicas {
			err = fmt.Errorf("%d run", len(where))
		}
		return err
	}))
	s.shows(t, others[0], leader, "Down Active Unreachable")
	s.exactly(t, others[0], "web", replicas)
	s.plug(t, leader)
	s.ready(t, leader, s.names...)
	s.exactly(t, leader, "web", replicas)
	s.kept(t, "m1", "m2", "m3")
}

// testLeaderCutOff: both sides of a partition tell the truth, one of them writes.
func (s *swarm) testLeaderCutOff(t *testing.T) {
	leader, others := s.leader(t, "m1")
	s.run(t, "disconnect", leader)
	t.Logf("a write after %v", s.writes(t, others[0]))
	await(t, "it knows that it does not lead", func() error {
		err := s.write(leader)
		if err == nil {
			t.Fatal("a manager without quorum accepted a write")
		}
		if !strings.Contains(err.Error(), "The swarm does not have a leader") {
			return err
		}
		return nil
	})
	all, err := s.list(leader)
	if err != nil || strings.Contains(fmt.Sprint(all), "Leader") {
		t.Errorf("cut off, it says %q, %v", all, err)
	}
	s.shows(t, others[1], leader, "Down Active Unreachable")
	await(t, "its tasks are replaced", func() error {
		out, err := s.nodes[others[0]].command("docker", "service", "ps", "web", "-f", "desired-state=running", "--format", "{{.Node}} {{.CurrentState}}")
		if n := strings.Count(out, "Running"); err == nil && (n != replicas || strings.Contains(out, leader+" ")) {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	s.run(t, "connect", leader)
	s.ready(t, leader, s.names...)
	s.exactly(t, leader, "web", replicas)
	s.kept(t, "m1", "m2", "m3")
}

// testLeaderNotHeard: a manager that reaches another one, but not the leader, says so,
// and where to go. It changes nothing for the others, and is as before afterwards.
func (s *swarm) testLeaderNotHeard(t *testing.T) {
	leader, others := s.leader(t, "m1")
	apart, informed := others[0], others[1]
	s.run(t, "disconnect", apart, "--from", leader)
	await(t, "it says that others hear the leader", func() error {
		err := s.write(apart)
		if err == nil {
			return fmt.Errorf("it still writes")
		}
		for _, word := range []string{"This manager does not hear the swarm's leader", leader + " (" + s.ip(t, leader), "use another manager, as " + informed} {
			if !strings.Contains(err.Error(), word) {
				return err
			}
		}
		return nil
	})
	contains(t, s.nodes[apart].docker(t, "info", "-f", "{{.Swarm.Error}}"), "use another manager, as "+informed)
	if all, err := s.list(apart); err != nil || strings.Contains(fmt.Sprint(all), "Leader") {
		t.Errorf("it says %q, %v", all, err)
	}
	if now, _ := s.leader(t, informed); now != leader {
		t.Errorf("%s leads now, not %s", now, leader)
	}
	if err := s.write(informed); err != nil {
		t.Error(err)
	}
	s.run(t, "connect", apart)
	s.ready(t, apart, s.names...)
	t.Logf("a write after %v", s.writes(t, apart))
	if now, _ := s.leader(t, apart); now != leader {
		t.Errorf("%s leads now, not %s", now, leader)
	}
	s.exactly(t, leader, "web", replicas)
	s.kept(t, "m1", "m2", "m3")
}

// testBlip: silence of less than three heart-beats moves nothing, even when
// something is sent meanwhile that nobody acknowledges.
func (s *swarm) testBlip(t *testing.T) {
	before := s.exactly(t, "m1", "web", replicas)
	s.run(t, "disconnect", "w1")
	s.nodes["m1"].docker(t, "node", "update", "--label-add", "told=late", "w1")
	time.Sleep(8 * time.Second)
	s.run(t, "connect", "w1")
	s.ready(t, "m1", s.names...)
	if now := s.exactly(t, "m1", "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
}

func (s *swarm) testWorkerDies(t *testing.T) {
	s.nodes["m1"].docker(t, "service", "update", "--force", "-q", "--update-delay", "0s", "--update-parallelism", "0", "web")
	where := s.exactly(t, "m1", "web", replicas)
	if on(where, "w1") == 0 {
		t.Errorf("nothing to lose on w1: %v", where)
	}
	s.cut(t, "w1")
	s.exactly(t, "m2", "web", replicas)
	s.shows(t, "m2", "w1", "Down Active")
	s.plug(t, "w1")
	s.ready(t, "m3", s.names...)
	s.exactly(t, "m3", "web", replicas)
	// Its containers end, and the daemon that restarts them is there before anybody thinks it dead.
	s.run(t, "restart", "w2")
	s.ready(t, "m3", s.names...)
	s.exactly(t, "m3", "web", replicas)
}

func (s *swarm) testDrain(t *testing.T) {
	for _, name := range []string{"w2", "m2"} {
		s.nodes["m1"].docker(t, "node", "update", "--availability", "drain", name)
		await(t, name+" is empty", func() error {
			where, err := s.running("web")
			if err == nil && (on(where, name) != 0 || len(where) != replicas) {
				err = fmt.Errorf("%v", where)
			}
			return err
		})
		s.exactly(t, "m1", "web", replicas)
		s.nodes["m1"].docker(t, "node", "update", "--availability", "active", name)
		s.nodes["m1"].docker(t, "service", "scale", "-d", fmt.Sprint("web=", replicas+2))
		where := s.exactly(t, "m1", "web", replicas+2)
		if on(where, name) == 0 {
			t.Errorf("nothing comes to %s after its return: %v", name, where)
		}
		s.nodes["m1"].docker(t, "service", "scale", "-d", fmt.Sprint("web=", replicas))
		s.exactly(t, "m1", "web", replicas)
	}
}

func (s *swarm) testPromote(t *testing.T) {
	before := s.exactly(t, "m1", "web", replicas)
	for range 2 { // a member of a former time comes back as another
		s.nodes["m2"].docker(t, "node", "promote", "w1")
		t.Logf("a manager after %v", s.shows(t, "m2", "w1", "Ready Active Reachable"))
		s.writes(t, "w1")
		s.kept(t, "w1")
		s.nodes["w1"].docker(t, "node", "demote", "w1")
		t.Logf("a worker after %v", s.shows(t, "m2", "w1", "Ready Active"))
		await(t, "it answers as a worker", func() error {
			_, err := s.nodes["w1"].command("docker", "node", "ls")
			if err == nil || !strings.Contains(err.Error(), "This node is not a swarm manager.") {
				err = fmt.Errorf("it says %w", err)
				return err
			}
			return nil
		})
	}
	leader, others := s.leader(t, "m1")
	s.nodes[others[0]].docker(t, "node", "demote", leader)
	s.shows(t, others[0], leader, "Ready Active")
	s.writes(t, others[1])
	s.nodes[others[0]].docker(t, "node", "promote", leader)
	s.shows(t, others[0], leader, "Ready Active Reachable")
	if now := s.exactly(t, leader, "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
	s.kept(t, "m1", "m2", "m3")
}

// testRotation: root, certificates and tokens become others while clients
// write at every manager, and none of them notices.
func (s *swarm) testRotation(t *testing.T) {
	before := s.exactly(t, "m1", "web", replicas)
	m := s.nodes["m2"]
	root, worker, manager := m.docker(t, "swarm", "ca"), s.token(t, "m2", "worker"), s.token(t, "m2", "manager")
	l := s.startLoad("m1", "m2", "m3")
	began := time.Now()
	contains(t, m.docker(t, "swarm", "ca", "--rotate"), "rotated TLS certificates")
	t.Logf("a new root after %v", time.Since(began))
	m.docker(t, "swarm", "join-token", "--rotate", "-q", "worker")
	m.docker(t, "swarm", "join-token", "--rotate", "-q", "manager")
	l.stop(t, s)
	for _, err := range l.refused {
		t.Errorf("refused: %v", err)
	}
	if m.docker(t, "swarm", "ca") == root || s.token(t, "m1", "worker") == worker || s.token(t, "m3", "manager") == manager {
		t.Error("root and tokens should be new")
	}
	for _, name := range s.names {
		if got := s.run(t, "ssh", name, "cat "+s.path(name, "data")+"/swarm/certificates/swarm-root-ca.crt"); got != m.docker(t, "swarm", "ca") {
			t.Errorf("%s trusts another root: %s", name, got)
		}
	}
	s.ready(t, "m1", s.names...)
	if now := s.exactly(t, "m1", "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
	// And once more, while the leader's daemon dies: what is refused may be, what is acknowledged stays.
	l = s.startLoad("m1", "m2", "m3")
	m.docker(t, "swarm", "ca", "--rotate", "--detach")
	leader, _ := s.leader(t, "m1")
	s.run(t, "ssh", leader, "kill -9 $(cat /run/legion/legion.pid)")
	await(t, "the rotation ends", func() error {
		out, err := s.nodes["m1"].command("docker", "info", "-f", "{{.Swarm.Cluster.RootRotationInProgress}}")
		if err == nil && strings.TrimSpace(out) != "false" {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	l.stop(t, s)
	s.ready(t, "m1", s.names...)
	s.kept(t, "m1", "m2", "m3")
}

// testRemoval: a node that is removed is shut out at once, and comes back as
// another with a token of today.
func (s *swarm) testRemoval(t *testing.T) {
	m, w := s.nodes["m1"], s.nodes["w2"]
	contains(t, m.dockerFails(t, "node", "rm", "w2").Error(), "is not down and can't be removed")
	contains(t, m.dockerFails(t, "node", "rm", "--force", "m3").Error(), "is a cluster manager and is a member of the raft cluster")
	old := s.token(t, "m1", "worker")
	m.docker(t, "swarm", "join-token", "--rotate", "-q", "worker")
	m.docker(t, "node", "rm", "--force", "w2")
	if all, err := s.list("m1"); err != nil || all["w2"] != "" {
		t.Errorf("it is there still: %q, %v", all, err)
	}
	w.docker(t, "swarm", "leave", "--force")
	s.exactly(t, "m1", "web", replicas)
	contains(t, w.dockerFails(t, "swarm", "join", "--token", old, s.ip(t, "m1")+":2377").Error(), "token")
	s.join(t, "w2", s.token(t, "m1", "worker"), "m3")
	s.ready(t, "m1", s.names...)
	s.exactly(t, "m1", "web", replicas)
}

func (s *swarm) testQuorumComesBack(t *testing.T) {
	before := s.exactly(t, "m1", "web", replicas)
	s.run(t, "stop", "m2", "m3")
	s.off["m2"], s.off["m3"] = true, true
	s.withoutQuorum(t, "m1")
	s.plug(t, "m2", "m3")
	t.Logf("a write after %v", s.writes(t, "m2"))
	s.ready(t, "m1", s.names...)
	now := s.exactly(t, "m1", "web", replicas)
	for id, n := range before {
		if n != "m2" && n != "m3" && now[id] != n {
			t.Errorf("container %.12s of %s did not live through it", id, n)
		}
	}
	s.kept(t, "m1", "m2", "m3")
}

// withoutQuorum: writes are refused with a reason, reads answered.
func (s *swarm) withoutQuorum(t *testing.T, at string) {
	t.Helper()
	await(t, "writes are refused", func() error {
		err := s.write(at)
		if err == nil {
			return fmt.Errorf("one was accepted")
		}
		if !strings.Contains(err.Error(), "The swarm does not have a leader") {
			return err
		}
		return nil
	})
	if out, err := s.nodes[at].command("docker", "service", "ls"); err != nil || !strings.Contains(out, "web") {
		t.Errorf("reads without quorum: %s, %v", out, err)
	}
}

func (s *swarm) testReboot(t *testing.T) {
	s.cut(t, s.names...)
	s.plug(t, s.names...)
	t.Logf("a write after %v", s.writes(t, "m1"))
	s.ready(t, "m1", s.names...)
	s.exactly(t, "m1", "web", replicas)
	s.kept(t, "m1", "m2", "m3")
}

// testForce: one manager that is left makes a swarm of what it has, and those
// that were lost find their place in it when they turn up again.
func (s *swarm) testForce(t *testing.T) {
	m := s.nodes["m1"]
	m.docker(t, "config", "create", "kept", s.path("m1", "config.json"))
	s.cut(t, "m2", "m3")
	s.withoutQuorum(t, "m1")
	before, err := s.running("web")
	if err != nil {
		t.Fatal(err)
	}
	m.docker(t, "swarm", "init", "--force-new-cluster", "--advertise-addr", s.ip(t, "m1"))
	t.Logf("a write after %v", s.writes(t, "m1"))
	s.ready(t, "m1", "m1", "w1", "w2")
	now := s.exactly(t, "m1", "web", replicas)
	for id, n := range before {
		if now[id] != n {
			t.Errorf("container %.12s of %s did not live through it", id, n)
		}
	}
	m.docker(t, "config", "inspect", "kept")
	for _, name := range []string{"m2", "m3"} {
		if out := m.docker(t, "node", "ps", name); strings.Contains(out, "Orphaned") {
			t.Errorf("tasks are given up at once: %s", out)
		}
	}
	s.kept(t, "m1")
	s.plug(t, "m2", "m3")
	s.ready(t, "m1", s.names...)
	s.exactly(t, "m1", "web", replicas)
	s.kept(t, "m1")
}
