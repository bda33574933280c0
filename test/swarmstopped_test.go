package test

import (
	"maps"
	"strings"
	"testing"
	"time"
)

// freeze stops the daemons of machines in the middle of whatever they do, as a debugger or
// a host that is out of memory does; thaw lets them go on. Their containers run, and the
// kernel takes connections for them.
func (s *swarm) freeze(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		s.run(t, "ssh", n, "kill -STOP $(cat /run/legion/legion.pid)")
		s.off[n] = true
	}
}

func (s *swarm) thaw(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		s.run(t, "ssh", n, "kill -CONT $(cat /run/legion/legion.pid)")
		delete(s.off, n)
	}
}

// newLeader is within what another manager writes once the one that leads is silent.
const newLeader = 10 * time.Second

// testLeaderStalls: the leader's daemon stands still until another one leads. Then it
// follows, whoever asked it is answered, and its tasks are the same ones.
func (s *swarm) testLeaderStalls(t *testing.T) {
	leader, others := s.leader(t, "m1")
	before := s.exactly(t, leader, "web", replicas)
	tasks := s.nodes[leader].tasks(t, "web", "{{.ID}}")
	s.freeze(t, leader)
	asked := make(chan error, 1)
	go func() { asked <- s.create(leader, "asked-while-it-stood") }()
	t.Logf("a write after %v", awaitFor(t, newLeader, "a write", func() error { return s.write(others[0]) }))
	s.thaw(t, leader)
	err := <-asked
	t.Logf("whoever asked it meanwhile is told: %v", err)
	switch {
	case err == nil:
		s.acked["asked-while-it-stood"] = true
	case !strings.Contains(err.Error(), "have a leader") && !strings.Contains(err.Error(), "come to pass"):
		t.Errorf("the request that waited is answered: %v", err)
	}
	s.ready(t, leader, s.names...)
	if now, _ := s.leader(t, others[1]); now == leader {
		t.Error("it leads again")
	}
	if now := s.exactly(t, leader, "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
	if now := s.nodes[leader].tasks(t, "web", "{{.ID}}"); strings.Join(now, " ") != strings.Join(tasks, " ") {
		t.Errorf("tasks were %v and are %v", tasks, now)
	}
	s.kept(t, "m1", "m2", "m3")
}

// testDaemonsStall: the leader's daemon and a worker's stand still until the others have
// replaced their tasks. What they know then is old, and they do nothing by it.
func (s *swarm) testDaemonsStall(t *testing.T) {
	leader, others := s.leader(t, "m1")
	before := s.exactly(t, leader, "web", replicas)
	s.freeze(t, leader, "w1")
	t.Logf("a write after %v", awaitFor(t, newLeader, "a write", func() error { return s.write(others[0]) }))
	s.nodes[others[0]].docker(t, "service", "scale", "-d", "web=12")
	s.shows(t, others[0], leader, "Down Active Unreachable")
	s.shows(t, others[1], "w1", "Down Active")
	replaced := s.exactly(t, others[0], "web", 12)
	for id := range before {
		if !s.off[before[id]] && replaced[id] == "" {
			t.Errorf("container %.12s ran on %s, which was not touched, and is gone", id, before[id])
		}
	}
	s.thaw(t, leader, "w1")
	s.ready(t, leader, s.names...)
	if now := s.exactly(t, leader, "web", 12); !maps.Equal(replaced, now) {
		t.Errorf("containers were %v, and are %v since they go on", replaced, now)
	}
	s.kept(t, "m1", "m2", "m3")
	s.nodes[leader].docker(t, "service", "scale", "-d", "web=10")
	s.exactly(t, leader, "web", replicas)
}

// testAllStall: every daemon stands still for longer than a node may be silent, as when the
// computer that they are all on sleeps. Nobody has died, and nothing is moved.
func (s *swarm) testAllStall(t *testing.T) {
	before := s.exactly(t, "m1", "web", replicas)
	tasks := s.nodes["m1"].tasks(t, "web", "{{.ID}}")
	s.freeze(t, s.names...)
	time.Sleep(18 * time.Second)
	s.thaw(t, s.names...)
	t.Logf("a write after %v", awaitFor(t, newLeader, "a write", func() error { return s.write("m1") }))
	time.Sleep(5 * time.Second) // for what was begun with what was known before
	s.ready(t, "m1", s.names...)
	if now := s.exactly(t, "m1", "web", replicas); !maps.Equal(before, now) {
		t.Errorf("containers were %v and are %v", before, now)
	}
	if now := s.nodes["m1"].tasks(t, "web", "{{.ID}}"); strings.Join(now, " ") != strings.Join(tasks, " ") {
		t.Errorf("tasks were %v and are %v", tasks, now)
	}
	s.kept(t, "m1", "m2", "m3")
}
