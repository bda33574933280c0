package test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

const againFile = `
services:
  front:
    image: net:1
    entrypoint: /web
    networks: [small, wide]
    ports: ["8084:8080"]
    deploy: {replicas: 4}
  back:
    image: net:1
    entrypoint: [/load, serve, ":9000"]
    networks: [wide]
    deploy: {mode: global}
networks:
  small: {driver: overlay, ipam: {config: [{subnet: 10.78.0.0/28}]}}
  wide: {driver: overlay}
`

// testStackAgain deploys and removes a stack so many times. One of its networks
// has addresses for three, so that none may be lost; machines have the devices,
// namespaces and rules after the last time that they had after the first.
func (s *netSwarm) testStackAgain(t *testing.T, times int) {
	file := filepath.Join(s.work, "again.yml")
	if err := os.WriteFile(file, []byte(againFile), 0o600); err != nil {
		t.Fatal(err)
	}
	networks := s.manage(t, "network", "ls", "-q", "-f", "scope=swarm")
	first := map[string]string{}
	for n := range times {
		s.manage(t, "stack", "deploy", "--detach=false", "--resolve-image", "never", "-c", file, "again")
		await(t, "its port answers on all machines", func() error {
			for _, m := range s.names {
				r, err := traffic.Web{Pace: traffic.Pace{Clients: 2, Count: 8}, URLs: []string{fmt.Sprintf("http://%s:8084/whoami", s.ip(t, m))}}.Run(t.Context())
				if err != nil || r.Failed > 0 {
					return fmt.Errorf("%s: %v, %w", m, r, err)
				}
			}
			return nil
		})
		s.manage(t, "stack", "rm", "again")
		await(t, "its networks are gone", func() error {
			out, err := s.nodes["m1"].command("docker", "network", "ls", "-q", "-f", "scope=swarm")
			if err == nil && strings.TrimSpace(out) != networks {
				err = fmt.Errorf("networks %q, want %q", out, networks)
			}
			return err
		})
		for _, m := range s.names {
			if n == 0 {
				first[m] = s.quiet(t, m, "again_")
				continue
			}
			await(t, m+" has nothing of it", func() error {
				if now, err := s.inventory(m); err != nil || now != first[m] {
					return fmt.Errorf("%w: it has\n%s\nand had\n%s", err, now, first[m])
				}
				return nil
			})
		}
	}
}

// inventory counts all that a network leaves on a machine, and the packet filter's
// lines without counters and elements that come and go with connections.
func (s *netSwarm) inventory(machine string) (string, error) {
	o := s.try("ssh", machine, `echo devices $(ip -o link | wc -l); echo namespaces $(ls /run/legion/netns | wc -l); echo records $(ls /run/legion/network | wc -l)
echo filter $(nft -s list ruleset | wc -l); echo pins $(find /sys/fs/bpf | wc -l); echo mounts $(wc -l </proc/self/mountinfo); echo sockets $(ss -Hlntu | wc -l)`)
	if o.err != nil {
		return "", fmt.Errorf("%w: %s", o.err, o.stderr)
	}
	return o.stdout, nil
}

// quiet is the inventory once containers of such services are gone and it has
// stayed as it is for a second.
func (s *netSwarm) quiet(t *testing.T, machine, services string) string {
	t.Helper()
	last, since := "", time.Now()
	await(t, machine+" is quiet", func() error {
		out, err := s.nodes[machine].command("docker", "ps", "-aq", "-f", "name="+services)
		if err != nil {
			return err
		}
		now, err := s.inventory(machine)
		if err != nil {
			return err
		}
		if now != last || strings.TrimSpace(out) != "" {
			last, since = now, time.Now()
		}
		if time.Since(since) < time.Second {
			return fmt.Errorf("it still changes: %s", now)
		}
		return nil
	})
	return last
}

// drive has a load run on a machine as a task, so that it needs no daemon. stop
// ends it and returns its report.
func (s *netSwarm) drive(t *testing.T, name, machine string, args ...string) (stop func() *traffic.Report) {
	t.Helper()
	s.service(t, name, append([]string{"--restart-condition", "none", "--constraint", "node.hostname==" + machine, "--network", "inner", "--entrypoint", "/load", "net:1"}, args...)...)
	id, err := s.container(name, machine)
	if err != nil {
		t.Fatal(err)
	}
	n := s.nodes[machine]
	return func() *traffic.Report {
		t.Helper()
		n.docker(t, "kill", "-s", "TERM", id)
		n.docker(t, "wait", id)
		r, err := parseReport(n.docker(t, "logs", id))
		if err != nil {
			t.Fatal(err)
		}
		s.manage(t, "service", "rm", name)
		return r
	}
}

// driveOutside is drive from this test, to an address.
func driveOutside(t *testing.T, load traffic.Web) (stop func() *traffic.Report) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	var r *traffic.Report
	var err error
	wait.Go(func() { r, err = load.Run(ctx) })
	return func() *traffic.Report {
		t.Helper()
		cancel()
		wait.Wait()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// update is a rolling update under load.
type update struct {
	replicas, parallelism int
	rate                  float64 // requests a second, half of them by name, half from outside
	updates               int     // at least
	requests              int     // at least
}

// readyTest has a task run, and get requests, once its server listens.
const readyTest = `legion.ready.test=["/web","check"]`

// testLateNode has tasks end while a node hears nothing: its daemon is stopped for
// longer than tasks drain. What comes to that node, or begins there, notices nothing.
func (s *netSwarm) testLateNode(t *testing.T) {
	const most, least, stall = 8, 2, 1500 * time.Millisecond
	s.service(t, "late", "--replicas", fmt.Sprint(most), "--constraint", "node.hostname!=w2", "--network", "inner", "-p", fmt.Sprint("8087:", webPort), "--label", readyTest, "--entrypoint", "/web", "net:1")
	s.right(t, "late", 8087, "w2")
	inside := s.drive(t, "drive", "w2", "http", "-rate", "100", "-clients", "4", fmt.Sprintf("http://late:%d/whoami", webPort))
	outside := driveOutside(t, traffic.Web{Pace: traffic.Pace{Clients: 4, Rate: 100}, URLs: []string{fmt.Sprintf("http://%s:8087/whoami", s.ip(t, "w2"))}})
	for range 2 {
		s.run(t, "ssh", "w2", fmt.Sprintf("pid=$(cat /run/legion/legion.pid); kill -STOP $pid; (sleep %v; kill -CONT $pid) >/dev/null 2>&1 &", stall.Seconds()))
		s.manage(t, "service", "scale", "-d", fmt.Sprint("late=", least))
		await(t, "the others have ended", func() error { return s.settled("late", fmt.Sprintf("%d/%d", least, least)) })
		s.manage(t, "service", "scale", fmt.Sprint("late=", most))
		s.right(t, "late", 8087, "w2")
	}
	reports := []*traffic.Report{inside(), outside()}
	for _, r := range reports {
		t.Logf("%v", r)
	}
	unharmed(t, reports)
	s.manage(t, "service", "rm", "late")
}

// testUpdate replaces all tasks of a service, under load over short and kept
// connections by name and through two nodes, of which none may fail.
func (s *netSwarm) testUpdate(t *testing.T, u update) {
	s.service(t, "roll", "--replicas", fmt.Sprint(u.replicas), "--network", "inner", "-p", fmt.Sprint("8085:", webPort),
		"--update-order", "start-first", "--update-parallelism", fmt.Sprint(u.parallelism), "--label", readyTest, "--entrypoint", "/web", "net:1")
	s.right(t, "roll", 8085, "w1")
	const clients, kept = 16, 8
	inside := s.drive(t, "drive", "w1", "http", "-rate", fmt.Sprint(u.rate/2), "-clients", fmt.Sprint(clients), "-kept", fmt.Sprint(kept), fmt.Sprintf("http://roll:%d/whoami", webPort))
	var stops []func() *traffic.Report
	for _, m := range []string{"m1", "w2"} {
		stops = append(stops, driveOutside(t, traffic.Web{
			Pace: traffic.Pace{Clients: clients, Rate: u.rate / 4}, Kept: kept, URLs: []string{fmt.Sprintf("http://%s:8085/whoami", s.ip(t, m))},
		}))
	}
	began := time.Now()
	before, err := s.running("roll")
	if err != nil {
		t.Fatal(err)
	}
	rounds := 0
	for rounds < u.updates || time.Since(began).Seconds()*u.rate < float64(u.requests) {
		s.manage(t, "service", "update", "-q", "--force", "roll")
		rounds++
	}
	await(t, "the old ones are gone", func() error { return s.settled("roll", fmt.Sprintf("%d/%d", u.replicas, u.replicas)) })
	after, err := s.running("roll")
	if err != nil {
		t.Fatal(err)
	}
	for id := range before {
		if after[id] != "" {
			t.Errorf("container %.12s was not replaced", id)
		}
	}
	t.Logf("%d updates of %d replicas in %v", rounds, u.replicas, time.Since(began).Round(time.Millisecond))
	reports := []*traffic.Report{inside()}
	for _, stop := range stops {
		reports = append(reports, stop())
	}
	for _, r := range reports {
		t.Logf("%v", r)
		if r.Failed > 0 || len(r.Servers) < 2*u.replicas*3/4 {
			t.Errorf("%d of %d failed; %d servers answered", r.Failed, r.Requests, len(r.Servers))
		}
	}
	s.manage(t, "service", "rm", "roll")
	await(t, "it is gone", func() error {
		left, err := s.running("roll")
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("on %q", slices.Sorted(maps.Values(left)))
		}
		return err
	})
}
