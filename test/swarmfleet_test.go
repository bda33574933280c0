package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// swarm is a swarm of local machines that all have the image app:1, formed
// through the stock client.
type swarm struct {
	*machines
	names []string
	nodes map[string]*node
	off   map[string]bool // machines that are killed now

	made  int             // services so far, for their names
	acked map[string]bool // services that a manager said it made
}

// A request that a partitioned or busy manager should have answered by then.
const requestTimeout = 15 * time.Second

// newSwarm makes the machines and, on the first, the swarm; the managers and
// then the workers join it.
func newSwarm(t *testing.T, managers, workers []string) *swarm {
	t.Helper()
	s := &swarm{machines: newMachines(t), names: slices.Concat(managers, workers), nodes: map[string]*node{}, off: map[string]bool{}, acked: map[string]bool{}}
	s.run(t, append([]string{"create"}, s.names...)...)
	for _, name := range s.names {
		n := s.node(name)
		n.http = &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", n.socket)
			},
		}}
		s.nodes[name] = n
		t.Cleanup(n.http.CloseIdleConnections)
	}
	first := s.nodes[managers[0]]
	first.image(t, "app:1", "")
	for _, name := range s.names[1:] {
		s.nodes[name].docker(t, "image", "load", "-q", "-i", first.dir+"/image.tar")
	}
	first.docker(t, "swarm", "init", "--advertise-addr", s.ip(t, managers[0]))
	for i, name := range s.names[1:] {
		role := map[bool]string{true: "manager", false: "worker"}[i+1 < len(managers)]
		s.join(t, name, s.token(t, managers[0], role), managers[i%len(managers)])
	}
	s.ready(t, managers[0], s.names...)
	return s
}

func (s *swarm) ip(t *testing.T, name string) string {
	t.Helper()
	return s.run(t, "ip", name)
}

func (s *swarm) token(t *testing.T, at, role string) string {
	t.Helper()
	return s.nodes[at].docker(t, "swarm", "join-token", "-q", role)
}

func (s *swarm) join(t *testing.T, name, token, at string) {
	t.Helper()
	s.nodes[name].docker(t, "swarm", "join", "--token", token, s.ip(t, at)+":2377")
}

// cut takes the power of machines, plug gives it back.
func (s *swarm) cut(t *testing.T, names ...string) {
	t.Helper()
	s.run(t, append([]string{"kill"}, names...)...)
	for _, n := range names {
		s.off[n] = true
		s.nodes[n].http.CloseIdleConnections()
	}
}

func (s *swarm) plug(t *testing.T, names ...string) {
	t.Helper()
	s.run(t, append([]string{"start"}, names...)...)
	for _, n := range names {
		delete(s.off, n)
	}
}

// get asks the API of one machine.
func (s *swarm) get(name, path string, filters map[string][]string, into any) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	f, err := json.Marshal(filters)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://legion/v1.44"+path+"?filters="+url.QueryEscape(string(f)), nil)
	if err != nil {
		return err
	}
	return s.do(name, r, http.StatusOK, into)
}

func (s *swarm) do(name string, r *http.Request, want int, into any) error {
	resp, err := s.nodes[name].http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s at %s: %s: %s", r.Method, r.URL.Path, name, resp.Status, b)
	}
	return json.Unmarshal(b, into)
}

// create makes a service without tasks.
func (s *swarm) create(at, service string) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	body := fmt.Sprintf(`{"Name":%q,"TaskTemplate":{"ContainerSpec":{"Image":"app:1"}},"Mode":{"Replicated":{"Replicas":0}}}`, service)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://legion/v1.44/services/create", strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	var made struct{ ID string }
	return s.do(at, r, http.StatusCreated, &made)
}

// write makes one service more.
func (s *swarm) write(at string) error {
	s.made++
	name := fmt.Sprint("w", s.made)
	err := s.create(at, name)
	if err == nil {
		s.acked[name] = true
	}
	return err
}

// writes waits until a manager accepts a write, and tells how long it took.
func (s *swarm) writes(t *testing.T, at string) time.Duration {
	t.Helper()
	return await(t, at+" accepts a write", func() error { return s.write(at) })
}

// load is a client at each of the managers that writes all the while.
type load struct {
	done    chan struct{}
	wait    sync.WaitGroup
	mu      sync.Mutex
	acked   []string
	refused []error
}

func (s *swarm) startLoad(managers ...string) *load {
	l := &load{done: make(chan struct{})}
	s.made++
	run := s.made
	for _, at := range managers {
		l.wait.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.done:
					return
				case <-time.After(10 * time.Millisecond):
				}
				name := fmt.Sprintf("load%d-%s-%d", run, at, i)
				err := s.create(at, name)
				l.mu.Lock()
				if err == nil {
					l.acked = append(l.acked, name)
				} else {
					l.refused = append(l.refused, err)
				}
				l.mu.Unlock()
			}
		})
	}
	return l
}

// stop ends the clients; what they were told is there is expected to be.
func (l *load) stop(t *testing.T, s *swarm) {
	t.Helper()
	close(l.done)
	l.wait.Wait()
	for _, name := range l.acked {
		s.acked[name] = true
	}
	t.Logf("%d writes acknowledged, %d refused", len(l.acked), len(l.refused))
	if len(l.acked) == 0 {
		t.Error("no write succeeded")
	}
}

// kept checks that managers have all that was acknowledged.
func (s *swarm) kept(t *testing.T, managers ...string) {
	t.Helper()
	for _, at := range managers {
		await(t, at+" has all services", func() error {
			var list []struct{ Spec struct{ Name string } }
			if err := s.get(at, "/services", nil, &list); err != nil {
				return err
			}
			have := map[string]bool{}
			for _, v := range list {
				have[v.Spec.Name] = true
			}
			for name := range s.acked {
				if !have[name] {
					return fmt.Errorf("service %s was acknowledged and is gone", name)
				}
			}
			return nil
		})
	}
}

// list is node ls of one manager: status, availability and manager status by
// machine. Nodes of former lives are left out.
func (s *swarm) list(at string) (map[string]string, error) {
	out, err := s.nodes[at].command("docker", "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}}")
	all := map[string]string{}
	for line := range strings.Lines(out) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(all[name], "Ready") {
			all[name] = rest
		}
	}
	return all, err
}

// shows waits until node ls at a manager says of a machine what is wanted, as
// "Ready Active Reachable".
func (s *swarm) shows(t *testing.T, at, name, want string) time.Duration {
	t.Helper()
	return await(t, at+" shows "+name+" "+want, func() error {
		all, err := s.list(at)
		if err == nil && all[name] != want {
			err = fmt.Errorf("it says %q", all)
		}
		return err
	})
}

// ready waits until all are, one of them leads, and no manager is missed.
func (s *swarm) ready(t *testing.T, at string, names ...string) {
	t.Helper()
	await(t, at+" shows all ready", func() error {
		all, err := s.list(at)
		if err != nil {
			return err
		}
		leaders := 0
		for _, n := range names {
			if !strings.HasPrefix(all[n], "Ready") || strings.Contains(all[n], "Unreachable") {
				return fmt.Errorf("it says %q", all)
			}
			if strings.HasSuffix(all[n], "Leader") {
				leaders++
			}
		}
		if leaders != 1 {
			return fmt.Errorf("%d leaders: %q", leaders, all)
		}
		return nil
	})
}

// leader asks a manager who of the three leads, and returns the others too, once
// it reaches them.
func (s *swarm) leader(t *testing.T, at string) (leader string, others []string) {
	t.Helper()
	await(t, "a leader", func() error {
		leader, others = "", nil
		all, err := s.list(at)
		for _, n := range s.names {
			switch {
			case strings.HasSuffix(all[n], " Leader"):
				leader = n
			case strings.HasSuffix(all[n], " Reachable"):
				others = append(others, n)
			}
		}
		if err == nil && (leader == "" || len(others) != 2) {
			err = fmt.Errorf("it says %q", all)
		}
		return err
	})
	return leader, others
}

// running are the service's running containers, by their id, and where they are,
// as the machines that are on know them: no manager is asked.
func (s *swarm) running(service string) (map[string]string, error) {
	where := map[string]string{}
	for _, name := range s.names {
		if s.off[name] {
			continue
		}
		var list []struct{ ID string }
		if err := s.get(name, "/containers/json", map[string][]string{"label": {"com.docker.swarm.service.name=" + service}}, &list); err != nil {
			return nil, err
		}
		for _, c := range list {
			where[c.ID] = name
		}
	}
	return where, nil
}

// exactly waits until the service has so many containers on all machines, and
// a manager agrees, and makes sure that it stays so.
func (s *swarm) exactly(t *testing.T, at, service string, count int) map[string]string {
	t.Helper()
	var where map[string]string
	check := func() error {
		now, err := s.running(service)
		if err != nil {
			return err
		}
		where = now
		if len(now) != count {
			return fmt.Errorf("there are %d: %v", len(now), now)
		}
		var list []struct {
			Status struct{ ContainerStatus struct{ ContainerID string } }
		}
		if err := s.get(at, "/tasks", map[string][]string{"service": {service}, "desired-state": {"running"}}, &list); err != nil {
			return err
		}
		for _, task := range list {
			if now[task.Status.ContainerStatus.ContainerID] == "" {
				return fmt.Errorf("no container %.12s of a task", task.Status.ContainerStatus.ContainerID)
			}
		}
		if len(list) != count {
			return fmt.Errorf("%s has %d tasks of it", at, len(list))
		}
		return nil
	}
	await(t, fmt.Sprintf("exactly %d containers of %s", count, service), check)
	s.nodes[at].awaitReplicas(t, service, fmt.Sprintf("%d/%d", count, count))
	for range 10 {
		if err := check(); err != nil {
			t.Fatalf("exactly %d containers of %s, and then: %v", count, service, err)
		}
		time.Sleep(pollInterval)
	}
	return where
}

// on counts the containers on one machine.
func on(where map[string]string, name string) (count int) {
	for _, n := range where {
		if n == name {
			count++
		}
	}
	return count
}
