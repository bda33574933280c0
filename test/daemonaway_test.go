package test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

// TestDaemonAway : while daemons are away, and killed again and again as they begin,
// an encrypted network goes on between nodes, over kept and new connections, and names
// are answered; nothing fails. When a keeper is killed, it is back by itself.
func TestDaemonAway(t *testing.T) {
	s := &netSwarm{swarm: newSwarm(t, []string{"m1"}, []string{"w1"})}
	m1, w1 := s.nodes["m1"], s.nodes["w1"]
	m1.imageOf(t, "net:1", "", map[string]string{"web": "./demo/web", "load": "./test/load"})
	w1.docker(t, "image", "load", "-q", "-i", m1.dir+"/image.tar")
	m1.docker(t, "network", "create", "-d", "overlay", "--opt", "encrypted", "inner")
	s.service(t, "far", "--constraint", "node.hostname==w1", "--network", "inner", "--label", readyTest, "--entrypoint", "/web", "net:1")
	url := fmt.Sprintf("http://far:%d/whoami", webPort)
	load := func(name, machine string, args ...string) func() *traffic.Report {
		return s.drive(t, name, machine, append([]string{args[0], "-rate", "40", "-clients", "4"}, args[1:]...)...)
	}
	ask := func(name, machine string, timeout time.Duration) func() *traffic.Report {
		return load(name, machine, "dns", "-timeout", timeout.String(), "127.0.0.11:53", "far")
	}
	end := func(what string, stops ...func() *traffic.Report) {
		t.Helper()
		var reports []*traffic.Report
		for _, stop := range stops {
			r := stop()
			reports = append(reports, r)
			t.Logf("%s: %v", what, r)
		}
		unharmed(t, reports)
	}
	stops := []func() *traffic.Report{
		load("requests", "m1", "http", "-kept", "2", "-timeout", impatient.String(), url),
		ask("names", "m1", impatient), ask("own-names", "w1", impatient),
	}
	keepers := map[string]string{}
	for _, m := range []string{"m1", "w1"} {
		keepers[m] = s.keeper(t, m)
	}
	back := func() {
		t.Helper()
		for _, m := range s.names {
			await(t, "the daemon of "+m+" is back", func() error {
				if !s.nodes[m].answers() {
					return errors.New("no answer")
				}
				return nil
			})
		}
		s.ready(t, "m1", s.names...)
	}
	// The manager's is away for all of that time, so that nobody takes the other node
	// for dead and replaces its tasks.
	kill := func(m string, times int) outcome {
		return s.try("ssh", m, fmt.Sprintf("for i in $(seq %d); do kill -KILL $(cat /run/legion/legion.pid); sleep 0.2; done; true", times))
	}
	var both sync.WaitGroup
	both.Go(func() { kill("m1", 30) })
	if o := kill("w1", 20); o.err != nil {
		t.Error(o.err, o.stderr)
	}
	both.Wait()
	back()
	for _, m := range s.names {
		s.run(t, "ssh", m, "kill -TERM $(cat /run/legion/legion.pid)")
		back()
	}
	end("daemons were away", stops...)
	for m, id := range keepers {
		if now := s.keeper(t, m); now != id {
			t.Errorf("the keeper of %s is %s, was %s", m, now, id)
		}
	}

	stop := load("patient", "m1", "http", "-kept", "2", "-timeout", patient.String(), url)
	for m, id := range keepers {
		s.run(t, "ssh", m, "kill -9 "+id)
		await(t, "the keeper of "+m+" is back", func() error {
			now, err := s.findKeeper(m)
			if err == nil && now == id {
				err = errors.New("it has not ended")
			}
			return err
		})
		await(t, "names are answered, and far is reached", func() error {
			id, err := s.container("patient", "m1")
			if err != nil {
				return err
			}
			out, err := m1.command("docker", "exec", id, "/load", "http", "-count", "20", "-timeout", impatient.String(), url)
			if err != nil {
				return err
			}
			r, err := parseReport(out)
			if err == nil && r.Failed > 0 {
				err = fmt.Errorf("%v", r)
			}
			return err
		})
	}
	end("keepers were killed", stop)
	s.manage(t, "service", "rm", "far")
}

// findKeeper is the process that holds what a machine's daemon would take along.
func (s *netSwarm) findKeeper(machine string) (string, error) {
	o := s.try("ssh", machine, "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^legion keeper '; then echo ${p#/proc/}; fi; done")
	if l := strings.Fields(o.stdout); o.err == nil && len(l) == 1 {
		return l[0], nil
	}
	return "", fmt.Errorf("keepers %q: %w", o.stdout, errors.Join(o.err, errors.New("there is to be one")))
}

func (s *netSwarm) keeper(t *testing.T, machine string) string {
	t.Helper()
	id, err := s.findKeeper(machine)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
