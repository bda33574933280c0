package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/test/traffic"
)

type loader = func(context.Context) (*traffic.Report, error)

func rate(r *traffic.Report) float64       { return r.Rate() }
func latency(r *traffic.Report) float64    { return r.Latency.P50 }
func throughput(r *traffic.Report) float64 { return float64(r.Bytes) / r.Seconds }

func whoami(hosts []string, port int) []string {
	urls := make([]string, len(hosts))
	for i, h := range hosts {
		urls[i] = fmt.Sprintf("http://%s:%d/whoami", h, port)
	}
	return urls
}

// short is a load of short connections for a while, by so many clients.
func short(clients int, urls []string) []string {
	return append([]string{"http", "-clients", fmt.Sprint(clients), "-for", loadTime.String()}, urls...)
}

// virtual compares a service's virtual address with its tasks' own.
func (b *netBench) virtual(ctx context.Context) error {
	for _, count := range []uint64{1, 10, 100} {
		if err := b.service(ctx, "web", near, count, []string{"/web"}, []string{"plain"}); err != nil {
			return err
		}
		direct, err := b.addresses(ctx, "web", "plain")
		if err != nil {
			return err
		}
		with := func(clients int, hosts ...string) loader {
			return func(ctx context.Context) (*traffic.Report, error) {
				return b.load(ctx, short(clients, whoami(hosts, webPort))...)
			}
		}
		vip, err := b.vip(ctx, "web")
		if err != nil {
			return err
		}
		if err := b.compare(ctx, fmt.Sprintf("connections/s, virtual address of %d : direct", count), [2]loader{with(8, direct...), with(8, vip)}, rate); err != nil {
			return err
		}
		if err := b.compare(ctx, fmt.Sprintf("latency, virtual address of %d : direct", count), [2]loader{with(1, direct...), with(1, vip)}, latency); err != nil {
			return err
		}
		if err := b.drop(ctx, "web"); err != nil {
			return err
		}
	}
	return nil
}

// vip is the service's first virtual address that is not of the ingress network.
func (b *netBench) vip(ctx context.Context, service string) (string, error) {
	out, err := b.docker(ctx, near, "network", "inspect", "-f", "{{.Id}}", "plain")
	if err != nil {
		return "", err
	}
	out, err = b.docker(ctx, near, "service", "inspect", "-f", fmt.Sprintf(`{{range .Endpoint.VirtualIPs}}{{if eq .NetworkID %q}}{{.Addr}}{{end}}{{end}}`, out), service)
	addr, _, ok := strings.Cut(out, "/")
	if err == nil && !ok {
		err = fmt.Errorf("service %s has no virtual address: %q", service, out)
	}
	return addr, err
}

// published compares a port of the routing mesh with a port of the host, both on
// the node of the task: that is plain translation. Then it compares the mesh
// through another node with the same node.
func (b *netBench) published(ctx context.Context) error {
	mesh := swarm.PortConfig{Protocol: "tcp", TargetPort: webPort, PublishedPort: 8081, PublishMode: swarm.PortConfigPublishModeIngress}
	host := swarm.PortConfig{Protocol: "tcp", TargetPort: webPort, PublishedPort: 8082, PublishMode: swarm.PortConfigPublishModeHost}
	if err := b.service(ctx, "web", far, 1, []string{"/web"}, nil, mesh, host); err != nil {
		return err
	}
	with := func(clients int, machine string, port uint32) loader {
		return func(ctx context.Context) (*traffic.Report, error) {
			return b.outside(ctx, near, short(clients, whoami([]string{b.boxes[machine].addr}, int(port)))...)
		}
	}
	for _, v := range []struct {
		name string
		pair func(clients int) [2]loader
	}{
		{"mesh : port of the host", func(c int) [2]loader {
			return [2]loader{with(c, far, host.PublishedPort), with(c, far, mesh.PublishedPort)}
		}},
		{"mesh through another node : mesh", func(c int) [2]loader {
			return [2]loader{with(c, far, mesh.PublishedPort), with(c, aside, mesh.PublishedPort)}
		}},
	} {
		if err := b.compare(ctx, "connections/s, "+v.name, v.pair(8), rate); err != nil {
			return err
		}
		if err := b.compare(ctx, "latency, "+v.name, v.pair(1), latency); err != nil {
			return err
		}
	}
	return b.drop(ctx, "web")
}

// routed is a network namespace on a machine, on a bridge, with a route to the
// other machine's: what an overlay is without a tunnel.
const routed = `set -e; ip netns add routed; ip link add rbr type bridge; ip link add rp type veth peer name eth0 netns routed; ip link set rp master rbr up
ip addr add 10.61.%[1]d.1/24 dev rbr; ip link set rbr up; ip -n routed addr add 10.61.%[1]d.2/24 dev eth0; ip -n routed link set eth0 up; ip -n routed link set lo up
ip -n routed route add default via 10.61.%[1]d.1; ip route add 10.61.%[2]d.0/24 via %[3]s; echo 1 >/proc/sys/net/ipv4/ip_forward`

// throughput compares streams between two machines over an overlay with routed
// ones, and over an encrypted overlay with a plain one. On a machine that does other
// things, too, the processor's time says more: of daemons and programs of all machines.
func (b *netBench) throughput(ctx context.Context) error {
	binary, err := filepath.Abs(loadBinary)
	if err != nil {
		return err
	}
	if _, err := b.machine(ctx, "ssh", near, fmt.Sprintf(routed, 1, 2, b.boxes[far].addr)); err != nil {
		return err
	}
	if _, err := b.machine(ctx, "ssh", far, fmt.Sprintf(routed, 2, 1, b.boxes[near].addr)+
		fmt.Sprintf("; setsid ip netns exec routed %s serve :%d </dev/null >/dev/null 2>&1 &", binary, serverPort)); err != nil {
		return err
	}
	stream := func(addr string) []string {
		return []string{"stream", "-for", loadTime.String(), fmt.Sprintf("%s:%d", addr, serverPort)}
	}
	over := map[string]loader{"routed": func(ctx context.Context) (*traffic.Report, error) {
		args := append([]string{"netns", "exec", "routed", binary}, stream("10.61.2.2")...)
		out, err := b.machine(ctx, "ssh", near, "ip "+strings.Join(args, " "))
		if err != nil {
			return nil, err
		}
		return parse(out)
	}}
	for _, n := range []string{"plain", "closed"} {
		addrs, err := b.addresses(ctx, "sink", n)
		if err != nil {
			return err
		}
		over[n] = func(ctx context.Context) (*traffic.Report, error) {
			before, err := b.cpuTime()
			if err != nil {
				return nil, err
			}
			r, err := b.load(ctx, stream(addrs[0])...)
			if err != nil {
				return nil, err
			}
			after, err := b.cpuTime()
			b.add("throughput of one stream, "+n+" overlay, Gbit/s", throughput(r)*8/1e9)
			b.add("processor's time of one stream, "+n+" overlay, µs/MB", float64((after-before).Microseconds())/(float64(r.Bytes)/1e6))
			return r, err
		}
	}
	if err := b.compare(ctx, "throughput, overlay : routed", [2]loader{over["routed"], over["plain"]}, throughput); err != nil {
		return err
	}
	return b.compare(ctx, "throughput, encrypted : plain overlay", [2]loader{over["plain"], over["closed"]}, throughput)
}

// names asks the resolver of a container in an overlay.
func (b *netBench) names(ctx context.Context) error {
	ids, err := b.containers(ctx, near, "client")
	if err != nil {
		return err
	}
	return b.queries(ctx, ids[0], "names of services", "sink")
}

// localNames asks the resolver of a container in a network of one node, which
// dockerd has too.
func (b *netBench) localNames(ctx context.Context) error {
	if _, err := b.docker(ctx, near, "network", "create", "local"); err != nil {
		return err
	}
	if _, err := b.docker(ctx, near, "run", "-d", "--name", "box", "--network", "local", "--entrypoint", "/load", "load:1", "serve", fmt.Sprint(":", serverPort)); err != nil {
		return err
	}
	if err := b.queries(ctx, "box", "names of containers", "box"); err != nil {
		return err
	}
	if _, err := b.docker(ctx, near, "rm", "-f", "box"); err != nil {
		return err
	}
	_, err := b.docker(ctx, near, "network", "rm", "local")
	return err
}

func (b *netBench) queries(ctx context.Context, id, what, name string) error {
	for range b.rounds {
		for _, clients := range []int{1, 8} {
			r, err := b.inside(ctx, near, id, "dns", "-clients", fmt.Sprint(clients), "-for", loadTime.String(), "127.0.0.11:53", name)
			if err != nil {
				return err
			}
			b.add(fmt.Sprintf("%s, %d clients, queries/s", what, clients), r.Rate())
			b.add(fmt.Sprintf("%s, %d clients, p99, ms", what, clients), r.Latency.P99)
		}
	}
	return nil
}
