package test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

// hostPort puts brackets around an IPv6 address.
func hostPort(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// testAddresses asks by every way that leads to a service whom it sees, with all
// of its tasks on one machine, which is entered directly and through another.
func (s *netSwarm) testAddresses(t *testing.T) {
	const target, other = "w2", "m2" // where the tasks are, and where not
	s.service(t, "far", "--replicas", "2", "--constraint", "node.hostname=="+target, "--network", "inner", "-p", fmt.Sprint("8081:", webPort), "--entrypoint", "/web", "net:1")
	s.service(t, "near", "--constraint", "node.hostname=="+target, "-p", fmt.Sprintf("mode=host,target=%d,published=8082", webPort), "--entrypoint", "/web", "net:1")
	s.service(t, "dgram", "--constraint", "node.hostname=="+target, "-p", "8083:9000/udp", "--entrypoint", "/load", "net:1", "serve", ":9000")
	on, off := s.ip(t, target), s.ip(t, other)
	vip := s.virtual(t, "far", "inner")
	if len(vip) != 2 {
		t.Fatalf("virtual addresses %q", vip)
	}
	own := func(machine, family string) string {
		id, err := s.container("client", machine)
		if err != nil {
			t.Fatal(err)
		}
		return s.nodes[machine].inspect(t, id, fmt.Sprintf("{{.NetworkSettings.Networks.inner.%s}}", family))
	}
	web := func(host string, port int) []string {
		return []string{"http", "-count", "5", "-timeout", "1s", "http://" + hostPort(host, port) + "/whoami"}
	}
	udp := func(host string) []string {
		return []string{"udp", "-count", "5", "-timeout", "1s", hostPort(host, 8083)}
	}
	for _, c := range []struct {
		name, from string // a machine, "client on" one, or "outside"
		load       []string
		want       string // empty: what the kernel makes of it
	}{
		{"outside to the node with the tasks", "outside", web(on, 8081), s.outside},
		{"outside to a node without", "outside", web(off, 8081), s.outside},
		{"outside to a port of the host", "outside", web(on, 8082), s.outside},
		{"outside, datagrams, to the node with the task", "outside", udp(on), s.outside},
		{"outside, datagrams, to a node without", "outside", udp(off), s.outside},
		{"another node to the node with the tasks", "m3", web(on, 8081), s.ip(t, "m3")},
		{"another node to a node without", "m3", web(off, 8081), s.ip(t, "m3")},
		{"another node to a port of the host", "m3", web(on, 8082), s.ip(t, "m3")},
		{"another node, datagrams", "m3", udp(off), s.ip(t, "m3")},
		{"a node with the tasks to itself", target, web(on, 8081), on},
		{"a node without to itself", other, web(off, 8081), off},
		{"loopback of a node with the tasks", target, web("127.0.0.1", 8081), ""},
		{"loopback of a node without", other, web("127.0.0.1", 8081), ""},
		{"IPv6 loopback of a node without", other, web("::1", 8081), ""},
		{"loopback, datagrams", other, udp("127.0.0.1"), ""},
		{"a container to its own node with the tasks", "client on " + target, web(on, 8081), ""},
		{"a container to its own node without", "client on " + other, web(off, 8081), ""},
		{"a container to another node", "client on m1", web(off, 8081), s.ip(t, "m1")},
		{"a container to the virtual address, same node", "client on " + target, web("far", webPort), own(target, "IPAddress")},
		{"a container to the IPv4 virtual address, other node", "client on m1", web(vip[0], webPort), own("m1", "IPAddress")},
		{"a container to the IPv6 virtual address, other node", "client on m1", web(vip[1], webPort), own("m1", "GlobalIPv6Address")},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := s.sent(t.Context(), c.from, c.load)
			if err != nil {
				t.Fatal(err)
			}
			seen := slices.Sorted(maps.Keys(r.Clients))
			if r.Failed > 0 || len(seen) == 0 {
				t.Fatalf("%v", r)
			}
			t.Logf("seen: %q", seen)
			if c.want != "" && !slices.Equal(seen, []string{c.want}) {
				t.Errorf("the server sees %q, want %s", seen, c.want)
			}
		})
	}
	s.manage(t, "service", "rm", "far", "near", "dgram")
	await(t, "the port is closed", func() error {
		r, err := s.sent(t.Context(), "outside", web(off, 8081))
		if err == nil && r.Failed != r.Requests {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
}

// sent is a load from one of many places.
func (s *netSwarm) sent(ctx context.Context, from string, args []string) (*traffic.Report, error) {
	if m, ok := strings.CutPrefix(from, "client on "); ok {
		return s.load(m, args...)
	}
	if from != "outside" {
		o := s.try("ssh", from, s.work+"/rootfs-load-web/load "+strings.Join(args, " "))
		if o.err != nil {
			return nil, fmt.Errorf("%w: %s", o.err, o.stderr)
		}
		return parseReport(o.stdout)
	}
	pace := traffic.Pace{Count: 5, Timeout: time.Second}
	if args[0] == "udp" {
		return traffic.Datagrams{Pace: pace, Address: args[len(args)-1]}.Run(ctx)
	}
	return traffic.Web{Pace: pace, URLs: []string{args[len(args)-1]}}.Run(ctx)
}
