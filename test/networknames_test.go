package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// testNames changes a service in all ways and looks after each, from every
// machine, whom its names stand for and who answers.
func (s *netSwarm) testNames(t *testing.T) {
	port := s.published(t, "web")
	s.right(t, "web", port, s.names...)
	got, err := s.resolve("w1", "WEB", "web.inner", "tasks.web.inner", "nosuch.inner", "tasks.nosuch.inner")
	if err != nil {
		t.Fatal(err)
	}
	vip := s.virtual(t, "web", "inner")
	if len(vip) != 2 {
		t.Errorf("virtual addresses %q, want one a family", vip)
	}
	if !slices.Equal(got["WEB"], vip) || !slices.Equal(got["web.inner"], vip) || len(got["tasks.web.inner"]) != 2*webTasks || len(got["nosuch.inner"])+len(got["tasks.nosuch.inner"]) > 0 {
		t.Errorf("names %q, want %q", got, vip)
	}
	for _, a := range vip {
		r, err := s.load("w2", "http", "-count", "100", fmt.Sprintf("http://%s/whoami", hostPort(a, webPort)))
		if err != nil || r.Failed > 0 || len(r.Servers) != webTasks {
			t.Errorf("at %s: %v, %v", a, r, err)
		}
	}
	t.Run("one by one", func(t *testing.T) { // without a virtual address
		s.service(t, "rr", "--replicas", "3", "--endpoint-mode", "dnsrr", "--network", "name=inner,alias=site", "--hostname", "{{.Service.Name}}-{{.Task.Slot}}", "--entrypoint", "/web", "net:1")
		want, err := s.addresses("rr", "inner")
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.resolve("w1", "rr", "tasks.rr", "site", "rr-2")
		if err != nil || !slices.Equal(got["rr"], want) || !slices.Equal(got["tasks.rr"], want) || !slices.Equal(got["site"], want) || len(got["rr-2"]) != 2 {
			t.Errorf("names %q, %v, want %q", got, err, want)
		}
		s.manage(t, "service", "rm", "rr")
		await(t, "its name is gone", func() error {
			got, err := s.resolve("w2", "rr.inner")
			if err == nil && len(got["rr.inner"]) > 0 {
				err = fmt.Errorf("%q", got)
			}
			return err
		})
	})
	for _, change := range [][]string{
		{"service", "scale", "web=8"},
		{"service", "update", "-q", "--force", "--update-order", "start-first", "--update-parallelism", "4", "web"},
		{"node", "update", "--availability", "drain", "w1"},
		{"node", "update", "--availability", "active", "w1"},
		{"service", "scale", fmt.Sprint("web=", webTasks)},
	} {
		s.manage(t, change...)
		count := "8/8"
		if strings.HasSuffix(change[len(change)-1], fmt.Sprint("=", webTasks)) {
			count = fmt.Sprintf("%d/%d", webTasks, webTasks)
		}
		await(t, "it has settled", func() error { return s.settled("web", count) })
		s.nodes["m1"].awaitReplicas(t, "client", map[bool]string{true: "4/4", false: "5/5"}[slices.Contains(change, "drain")])
		machines := s.names
		if slices.Contains(change, "drain") {
			machines = []string{"m1", "m2", "m3", "w2"}
		}
		s.right(t, "web", port, machines[len(machines)-2:]...)
		t.Logf("right after %q", change)
	}
}

// settled is an error until so many tasks run and no other container does.
func (s *netSwarm) settled(service, replicas string) error {
	out, err := s.nodes["m1"].command("docker", "service", "ls", "--format", "{{.Replicas}}", "-f", "name="+service)
	if err != nil {
		return err
	}
	where, err := s.running(service)
	if err == nil && (strings.TrimSpace(out) != replicas || !strings.HasPrefix(replicas, fmt.Sprint(len(where), "/"))) {
		err = fmt.Errorf("%s, and %d containers", out, len(where))
	}
	return err
}

// published is the port that the service got.
func (s *netSwarm) published(t *testing.T, service string) (port int) {
	t.Helper()
	out := s.manage(t, "service", "inspect", "-f", "{{range .Endpoint.Ports}}{{.PublishedPort}}{{end}}", service)
	if _, err := fmt.Sscan(out, &port); err != nil {
		t.Fatalf("published port %q of %s: %v", out, service, err)
	}
	return port
}

// testAttached has containers that are no tasks join the network, on a manager
// and on a worker, with the stock client.
func (s *netSwarm) testAttached(t *testing.T) {
	for _, m := range []string{"m2", "w2"} {
		out := s.nodes[m].docker(t, "run", "--rm", "--network", "inner", "--entrypoint", "/load", "net:1", "http", "-count", "50", fmt.Sprintf("http://web:%d/whoami", webPort))
		if r, err := parseReport(out); err != nil || r.Failed > 0 || len(r.Servers) != webTasks {
			t.Errorf("on %s: %v, %v", m, r, err)
		}
	}
	n := s.nodes["w1"]
	n.docker(t, "run", "-d", "--name", "loner", "--network", "inner", "--entrypoint", "/web", "net:1")
	await(t, "others find it", func() error {
		r, err := s.load("m3", "http", "-count", "5", fmt.Sprintf("http://loner:%d/whoami", webPort))
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
	contains(t, s.nodes["m1"].dockerFails(t, "network", "rm", "inner").stderr, "in use")
	n.docker(t, "network", "disconnect", "inner", "loner")
	await(t, "its name is gone", func() error {
		got, err := s.resolve("m3", "loner.inner")
		if err == nil && len(got["loner.inner"]) > 0 {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
	n.docker(t, "network", "connect", "--alias", "friend", "inner", "loner")
	await(t, "it is back under another name", func() error {
		r, err := s.load("w2", "http", "-count", "5", fmt.Sprintf("http://friend:%d/whoami", webPort))
		if err == nil && r.Failed > 0 {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
	n.docker(t, "rm", "-f", "loner")
}
