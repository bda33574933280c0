package test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

// How long a client waits for a step of a request.
const (
	// A node that starts, or a keeper that was killed, answers no query for a name;
	// clients ask again after five seconds, and patient ones do not fail.
	patient   = 8 * time.Second
	impatient = time.Second
)

// steady is a service on the workers, with a load of it by name on the first one
// and from outside through it.
func (s *netSwarm) steady(t *testing.T, patience time.Duration) (stop func(what string) []*traffic.Report) {
	t.Helper()
	s.service(t, "steady", "--replicas", "4", "--constraint", "node.role==worker", "--network", "inner", "-p", fmt.Sprint("8086:", webPort), "--label", readyTest, "--entrypoint", "/web", "net:1")
	s.right(t, "steady", 8086, "w1")
	const clients, kept, rate = 8, 4, 60
	inside := s.drive(t, "drive", "w1", "http", "-rate", fmt.Sprint(rate), "-clients", fmt.Sprint(clients), "-kept", fmt.Sprint(kept),
		"-timeout", patience.String(), fmt.Sprintf("http://steady:%d/whoami", webPort))
	outside := driveOutside(t, traffic.Web{Pace: traffic.Pace{Clients: clients, Rate: rate, Timeout: patience}, Kept: kept, URLs: []string{fmt.Sprintf("http://%s:8086/whoami", s.ip(t, "w1"))}})
	return func(what string) []*traffic.Report {
		t.Helper()
		reports := []*traffic.Report{outside(), inside()}
		for _, r := range reports {
			t.Logf("%s: %v", what, r)
		}
		s.manage(t, "service", "rm", "steady")
		return reports
	}
}

// unharmed fails the test if a request failed.
func unharmed(t *testing.T, reports []*traffic.Report) {
	t.Helper()
	for _, r := range reports {
		if r.Failed > 0 || r.Requests == 0 {
			t.Errorf("%d of %d requests failed", r.Failed, r.Requests)
		}
	}
}

// testDaemonsCrash kills and restarts the daemons of the workers: traffic does
// not notice.
func (s *netSwarm) testDaemonsCrash(t *testing.T) {
	stop := s.steady(t, impatient)
	for _, m := range []string{"w1", "w2"} {
		for _, signal := range []string{"KILL", "TERM"} {
			s.run(t, "ssh", m, "kill -"+signal+" $(cat /run/legion/legion.pid)")
			await(t, "the daemon of "+m+" is back", func() error {
				if !s.nodes[m].answers() {
					return fmt.Errorf("no answer")
				}
				return nil
			})
		}
	}
	s.ready(t, "m1", s.names...)
	s.right(t, "steady", 8086, "w1", "w2")
	unharmed(t, stop("daemons crashed"))
	s.right(t, "web", s.published(t, "web"), "w1", "m3")
}

// testManagersLost takes the power of the leader, then of all managers, and kills
// a worker's daemon meanwhile: traffic between workers does not notice.
func (s *netSwarm) testManagersLost(t *testing.T) {
	stop := s.steady(t, patient)
	leader, others := s.leader(t, "m1")
	s.cut(t, leader)
	s.writes(t, others[0])
	s.cut(t, others...)
	time.Sleep(2 * time.Second)
	s.run(t, "ssh", "w2", "kill -9 $(cat /run/legion/legion.pid)")
	await(t, "the daemon of w2 is back", func() error {
		if !s.nodes["w2"].answers() {
			return fmt.Errorf("no answer")
		}
		return nil
	})
	time.Sleep(2 * time.Second)
	s.plug(t, "m1", "m2", "m3")
	s.ready(t, "m1", s.names...)
	unharmed(t, stop("managers were lost"))
	await(t, "it has settled", func() error { return s.settled("web", fmt.Sprintf("%d/%d", webTasks, webTasks)) })
	s.nodes["m1"].awaitReplicas(t, "client", "5/5")
	s.right(t, "web", s.published(t, "web"), "m1", "w1")
}

// testCutOff parts a worker from all others for a while. Those that are left do
// without it as soon as it is down; when it is back, everything is right again,
// there too.
func (s *netSwarm) testCutOff(t *testing.T, length time.Duration) {
	stop := s.steady(t, impatient)
	s.run(t, "disconnect", "w2")
	began := time.Now()
	s.shows(t, "m1", "w2", "Down Active")
	down := time.Since(began)
	await(t, "its tasks run elsewhere", func() error { return s.onAll("steady", "w1", 4) })
	s.afterLoss(t, stop("a node was cut off"), began)
	t.Logf("down after %v", down.Round(time.Millisecond))
	s.alive(t, "m3", "w1")
	time.Sleep(time.Until(began.Add(length)))
	s.run(t, "connect", "w2")
	s.ready(t, "m1", s.names...)
	s.healed(t)
}

// testNodeLost takes a worker's power, and gives it back.
func (s *netSwarm) testNodeLost(t *testing.T) {
	stop := s.steady(t, impatient)
	s.cut(t, "w2")
	began := time.Now()
	await(t, "its tasks run elsewhere", func() error { return s.onAll("steady", "w1", 4) })
	s.afterLoss(t, stop("a node was lost"), began)
	s.alive(t, "m2", "w1")
	s.plug(t, "w2")
	s.ready(t, "m1", s.names...)
	s.healed(t)
}

// onAll is an error unless so many tasks of the service run on the machine.
func (s *netSwarm) onAll(service, machine string, count int) error {
	ids, err := s.nodes[machine].containers(service)
	if err == nil && len(ids) != count {
		err = fmt.Errorf("%d run on %s", len(ids), machine)
	}
	return err
}

// afterLoss checks that what failed failed before the loss was noticed, and that
// not everything did: half of the servers were still there.
func (s *netSwarm) afterLoss(t *testing.T, reports []*traffic.Report, began time.Time) {
	t.Helper()
	for _, r := range reports {
		if r.Failed*4 > r.Requests*3 || r.Requests == r.Failed {
			t.Errorf("%d of %d requests failed", r.Failed, r.Requests)
		}
		if len(r.Failures) > 0 {
			t.Logf("the last failure that is told of: %v after it", r.Failures[len(r.Failures)-1].At.Sub(began).Round(time.Millisecond))
		}
	}
}

// alive checks that nothing fails any more at machines that are left.
func (s *netSwarm) alive(t *testing.T, machines ...string) {
	t.Helper()
	await(t, "web has all its tasks", func() error {
		out, err := s.nodes["m1"].command("docker", "service", "ls", "--format", "{{.Replicas}}", "-f", "name=web")
		if want := fmt.Sprintf("%d/%d\n", webTasks, webTasks); err == nil && out != want {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	for _, m := range machines {
		await(t, m+" does without", func() error {
			r, err := s.load(m, "http", "-clients", "4", "-count", "60", "-timeout", "1s", fmt.Sprintf("http://web:%d/whoami", webPort))
			if err == nil && (r.Failed > 0 || len(r.Servers) != webTasks) {
				err = fmt.Errorf("%v", r)
			}
			return err
		})
	}
}

// healed waits until services have what they should, and everything is right on
// all machines.
func (s *netSwarm) healed(t *testing.T) {
	t.Helper()
	await(t, "it has settled", func() error { return s.settled("web", fmt.Sprintf("%d/%d", webTasks, webTasks)) })
	s.nodes["m1"].awaitReplicas(t, "client", fmt.Sprintf("%d/%d", len(s.names), len(s.names)))
	await(t, "clients run everywhere", func() error {
		where, err := s.running("client")
		if err != nil {
			return err
		}
		machines := []string{}
		for _, m := range where {
			machines = append(machines, m)
		}
		slices.Sort(machines)
		if !slices.Equal(machines, s.names) {
			err = fmt.Errorf("on %q", machines)
		}
		return err
	})
	s.right(t, "web", s.published(t, "web"), s.names...)
}
