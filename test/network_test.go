package test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

// netSwarm is a swarm of five machines that have the image net:1, of demo/web and
// test/load, with a network "inner" of both families, a client on every machine,
// and a service "web" in it that is published on port 8080.
type netSwarm struct {
	*swarm
	outside string // this test's own address, as the machines see it
}

// Requests that fail are not tried again, anywhere in these tests.
const (
	webPort    = 8080
	webTasks   = 5
	serverPort = 9000 // of load serve
)

// TestNetwork has services talk by name over networks of their own, and be
// reached from outside through every node, while they and the swarm change.
func TestNetwork(t *testing.T) {
	began := time.Now()
	s := newNetSwarm(t)
	t.Logf("made in %v", time.Since(began).Round(time.Millisecond))
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"names", s.testNames},
		{"the clients' addresses", s.testAddresses},
		{"attached", s.testAttached},
		{"encrypted", s.testEncrypted},
		{"a stack again and again", func(t *testing.T) { s.testStackAgain(t, 3) }},
		{"a rolling update", func(t *testing.T) { s.testUpdate(t, update{replicas: 32, parallelism: 4, rate: 500, updates: 1}) }},
		{"a node hears late", s.testLateNode},
		{"daemons crash", s.testDaemonsCrash},
		{"managers are lost", s.testManagersLost},
		{"a node is cut off", func(t *testing.T) { s.testCutOff(t, 30*time.Second) }},
		{"a node is lost", s.testNodeLost},
	} {
		start := time.Now()
		if !t.Run(test.name, test.run) {
			break
		}
		t.Logf("%s: %v", test.name, time.Since(start).Round(time.Millisecond))
	}
}

func newNetSwarm(t *testing.T) *netSwarm {
	t.Helper()
	s := &netSwarm{swarm: newSwarm(t, []string{"m1", "m2", "m3"}, []string{"w1", "w2"})}
	m1 := s.nodes["m1"]
	m1.imageOf(t, "net:1", "", map[string]string{"web": "./demo/web", "load": "./test/load"})
	for _, name := range s.names[1:] {
		s.nodes[name].docker(t, "image", "load", "-q", "-i", m1.dir+"/image.tar")
	}
	s.outside = s.gateway(t)
	m1.docker(t, "network", "create", "-d", "overlay", "--ipv6", "--attachable", "inner")
	s.service(t, "client", "--mode", "global", "--network", "inner", "-p", fmt.Sprintf("%d:%d/udp", serverPort, serverPort),
		"--entrypoint", "/load", "net:1", "serve", fmt.Sprint(":", serverPort))
	s.service(t, "web", "--replicas", fmt.Sprint(webTasks), "--network", "inner", "-p", fmt.Sprint(webPort), "--entrypoint", "/web", "net:1")
	return s
}

// service creates one at m1, with the timing of tests, and waits for it.
func (s *netSwarm) service(t *testing.T, name string, args ...string) {
	t.Helper()
	s.nodes["m1"].service(t, name, append([]string{"--update-monitor", "0s", "--restart-delay", "0s"}, args...)...)
}

// manage runs a command at m1.
func (s *netSwarm) manage(t *testing.T, args ...string) string {
	t.Helper()
	return s.nodes["m1"].docker(t, args...)
}

// gateway is the host's address on the fabric: the first of its subnet.
func (s *netSwarm) gateway(t *testing.T) string {
	t.Helper()
	a, err := netip.ParseAddr(s.ip(t, "m1"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.Prefix(24)
	if err != nil {
		t.Fatal(err)
	}
	return p.Addr().Next().String()
}

// container is one of the service's on a machine.
func (s *netSwarm) container(service, machine string) (string, error) {
	ids, err := s.nodes[machine].containers(service)
	if err == nil && len(ids) == 0 {
		err = fmt.Errorf("no container of %s on %s", service, machine)
	}
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// inside runs /load in the machine's client.
func (s *netSwarm) inside(machine string, args ...string) (string, error) {
	id, err := s.container("client", machine)
	if err != nil {
		return "", err
	}
	return s.nodes[machine].command("docker", append([]string{"exec", id, "/load"}, args...)...)
}

// load runs a load in the machine's client to its end.
func (s *netSwarm) load(machine string, args ...string) (*traffic.Report, error) {
	out, err := s.inside(machine, args...)
	if err != nil {
		return nil, err
	}
	return parseReport(out)
}

func parseReport(text string) (*traffic.Report, error) {
	r := new(traffic.Report)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("a report: %w: %q", err, text)
	}
	return r, nil
}

// resolve asks the resolver of the machine's client.
func (s *netSwarm) resolve(machine string, names ...string) (map[string][]string, error) {
	out, err := s.inside(machine, append([]string{"resolve"}, names...)...)
	if err != nil {
		return nil, err
	}
	got := map[string][]string{}
	return got, json.Unmarshal([]byte(out), &got)
}

// addresses of the service's running containers in the network, as their nodes
// know them.
func (s *netSwarm) addresses(service, network string) ([]string, error) {
	where, err := s.running(service)
	if err != nil {
		return nil, err
	}
	var all []string
	for id, machine := range where {
		out, err := s.nodes[machine].command("docker", "inspect", "-f",
			fmt.Sprintf(`{{with index .NetworkSettings.Networks %q}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}`, network), id)
		if err != nil {
			return nil, err
		}
		all = append(all, strings.Fields(out)...)
	}
	slices.Sort(all)
	return all, nil
}

// virtual are the service's addresses in the network.
func (s *netSwarm) virtual(t *testing.T, service, network string) []string {
	t.Helper()
	var list []struct{ NetworkID, Addr string }
	if err := json.Unmarshal([]byte(s.manage(t, "service", "inspect", "-f", "{{json .Endpoint.VirtualIPs}}", service)), &list); err != nil {
		t.Fatal(err)
	}
	id := s.manage(t, "network", "inspect", "-f", "{{.Id}}", network)
	var all []string
	for _, v := range list {
		if v.NetworkID == id {
			addr, _, _ := strings.Cut(v.Addr, "/")
			all = append(all, addr)
		}
	}
	slices.Sort(all)
	return all
}

// right waits until, on each of the machines, the service's names stand for what
// there is and its tasks all answer, both there and at the published port.
func (s *netSwarm) right(t *testing.T, service string, port int, machines ...string) {
	t.Helper()
	vip := s.virtual(t, service, "inner")
	for _, m := range machines {
		await(t, fmt.Sprintf("%s has %s right", m, service), func() error {
			want, err := s.addresses(service, "inner")
			if err != nil {
				return err
			}
			got, err := s.resolve(m, service, "tasks."+service)
			if err != nil {
				return err
			}
			if !slices.Equal(got[service], vip) || !slices.Equal(got["tasks."+service], want) {
				return fmt.Errorf("%q stand for it, want %q and %q", got, vip, want)
			}
			return nil
		})
		s.whole(t, m, service, port)
	}
}

// whole checks that all tasks of the service answer, each its share.
func (s *netSwarm) whole(t *testing.T, m, service string, port int) {
	t.Helper()
	tasks, err := s.running(service)
	if err != nil {
		t.Fatal(err)
	}
	count := 20 * len(tasks)
	r, err := s.load(m, "http", "-clients", "4", "-count", fmt.Sprint(count), fmt.Sprintf("http://%s:%d/whoami", service, webPort))
	if err != nil {
		t.Fatal(err)
	}
	s.good(t, m+" by name", r, slices.Collect(maps.Keys(tasks)))
	if port == 0 {
		return
	}
	r, err = traffic.Web{Pace: traffic.Pace{Clients: 4, Count: count}, URLs: []string{fmt.Sprintf("http://%s:%d/whoami", s.ip(t, m), port)}}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.good(t, m+" from outside", r, slices.Collect(maps.Keys(tasks)))
}

// good reports failures, and servers that never answered.
func (s *netSwarm) good(t *testing.T, what string, r *traffic.Report, tasks []string) {
	t.Helper()
	if r.Failed > 0 || r.Requests == 0 {
		t.Errorf("%s: %v", what, r)
	}
	if len(r.Servers) != len(tasks) {
		t.Errorf("%s: %d of %d tasks answer: %v", what, len(r.Servers), len(tasks), r.Servers)
	}
	for _, id := range tasks {
		if r.Servers[id[:12]] == 0 {
			t.Errorf("%s: %.12s never answers: %v", what, id, r.Servers)
		}
	}
}
