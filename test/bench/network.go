package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"github.com/legion-swarm/legion/test/traffic"
)

// The machines whose network is measured: clients are on near, servers on far,
// and aside has neither.
const near, far, aside = "n1", "n2", "n3"

const (
	netImage   = "build/images/load.tar" // load:1, with /web and /load
	loadBinary = "build/load"
	webPort    = 8080
	serverPort = 9000
	loadTime   = 2 * time.Second
	drainTime  = 30 * time.Second // for tasks that are told to end
)

// netBench is a swarm whose networks are measured. Comparisons are taken by turns
// within each round, and their ratios are what is noted.
type netBench struct {
	*fleet
	api    *peer // at the manager
	rounds int
	add    adder
}

// part of what is measured, under a name for -only.
type part struct {
	name string
	take func(*netBench, context.Context) error
}

// parts that one machine is enough for, with any peer, and those for Legion's
// swarm of three.
func parts(only string) (local, swarm []part) {
	wanted := func(all []part) []part {
		return slices.DeleteFunc(all, func(p part) bool { return !strings.Contains("network "+p.name, only) })
	}
	return wanted([]part{{"local names", (*netBench).localNames}}), wanted([]part{
		{"virtual addresses", (*netBench).virtual}, {"published ports", (*netBench).published}, {"throughput", (*netBench).throughput},
		{"names", (*netBench).names}, {"servers killed", (*netBench).killed}, {"rolling update", (*netBench).updated},
	})
}

// networks measures Legion's networks, and what dockerd's can be compared in.
func networks(ctx context.Context, rounds int, only string, peers []*peer, r *results) error {
	local, swarm := parts(only)
	for _, p := range peers {
		add := func(name string, v float64) { r.add("network: "+name, p.name, v) }
		dockerd := ""
		if p.name != "legion" {
			dockerd, swarm = p.command[0], nil
		}
		if len(local)+len(swarm) == 0 {
			continue
		}
		if err := measureNetwork(ctx, dockerd, rounds, add, local, swarm); err != nil {
			return fmt.Errorf("network: %s: %w", p.name, err)
		}
	}
	return nil
}

func measureNetwork(ctx context.Context, dockerd string, rounds int, add adder, local, swarm []part) (err error) {
	names := []string{near, far, aside}
	if len(swarm) == 0 {
		names = names[:1]
	}
	f, err := newFleet(ctx, dockerd, names...)
	defer func() { err = errors.Join(err, f.remove()) }()
	if err != nil {
		return err
	}
	b := &netBench{fleet: f, api: &peer{client: f.boxes[near].client}, rounds: rounds, add: add}
	for _, name := range names {
		if _, err := b.docker(ctx, name, "image", "load", "-q", "-i", netImage); err != nil {
			return err
		}
	}
	if len(swarm) > 0 {
		swarm = append([]part{{"a swarm", (*netBench).form}}, swarm...)
	}
	for _, p := range append(local, swarm...) {
		if err := p.take(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// docker runs the command line at a machine.
func (f *fleet) docker(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "bin/legion", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+f.path(name, "legion.sock"), "DOCKER_CONTEXT=")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s at %s: %w: %s", strings.Join(args, " "), name, err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// form makes the swarm, its networks plain and closed, and in both a client on
// near and a server on far.
func (b *netBench) form(ctx context.Context) error {
	m := b.boxes[near]
	if _, err := m.client.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0" + swarmPort, AdvertiseAddr: m.addr + swarmPort}); err != nil {
		return err
	}
	for _, name := range []string{far, aside} {
		if err := b.join(ctx, name, near, false); err != nil {
			return err
		}
	}
	for name, opts := range map[string]map[string]string{"plain": nil, "closed": {"encrypted": ""}} {
		if _, err := m.client.NetworkCreate(ctx, name, client.NetworkCreateOptions{Driver: "overlay", Options: opts}); err != nil {
			return err
		}
	}
	if err := b.service(ctx, "client", near, 1, []string{"/load", "serve", fmt.Sprint(":", serverPort)}, []string{"plain", "closed"}); err != nil {
		return err
	}
	return b.service(ctx, "sink", far, 1, []string{"/load", "serve", fmt.Sprint(":", serverPort)}, []string{"plain", "closed"})
}

// service runs tasks on one machine (empty: any) and waits until they run.
func (b *netBench) service(ctx context.Context, name, machine string, count uint64, command, networks []string, ports ...swarm.PortConfig) error {
	s := spec(name, count)
	s.TaskTemplate.ContainerSpec.Image = "load:1"
	s.TaskTemplate.ContainerSpec.Command = command
	if command[0] == "/web" {
		s.Labels = map[string]string{"legion.ready.test": `["/web","check"]`} // nobody is sent to a server that doesn't listen yet
	}
	if machine != "" {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.hostname==" + machine}}
	}
	for _, n := range networks {
		s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
	}
	s.EndpointSpec = &swarm.EndpointSpec{Ports: ports}
	s.UpdateConfig = &swarm.UpdateConfig{Order: swarm.UpdateOrderStartFirst, Parallelism: 4, FailureAction: swarm.UpdateFailureActionContinue}
	if _, err := b.api.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: s}); err != nil {
		return err
	}
	_, err := b.api.running(ctx, name, int(count))
	return err
}

// drop removes services and waits until their containers are gone.
func (b *netBench) drop(ctx context.Context, names ...string) error {
	for _, name := range names {
		if _, err := b.api.client.ServiceRemove(ctx, name, client.ServiceRemoveOptions{}); err != nil {
			return err
		}
		for machine := range b.boxes {
			if _, err := within(ctx, drainTime, "no container of "+name, func() (bool, error) {
				l, err := b.containers(ctx, machine, name)
				return err == nil && len(l) == 0, err
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// containers of a service on a machine.
func (b *netBench) containers(ctx context.Context, machine, service string) ([]string, error) {
	l, err := b.boxes[machine].client.ContainerList(ctx, client.ContainerListOptions{Filters: client.Filters{}.Add("label", "com.docker.swarm.service.name="+service)})
	var ids []string
	for _, c := range l.Items {
		ids = append(ids, c.ID)
	}
	return ids, err
}

// addresses of a service's tasks in a network.
func (b *netBench) addresses(ctx context.Context, service, network string) ([]string, error) {
	tasks, err := b.api.tasks(ctx, service)
	var all []string
	for _, t := range tasks {
		for _, n := range t.NetworksAttachments {
			if n.Network.Spec.Name == network {
				addr, _, _ := strings.Cut(n.Addresses[0].String(), "/")
				all = append(all, addr)
			}
		}
	}
	return all, err
}

// load runs a load in the client.
func (b *netBench) load(ctx context.Context, args ...string) (*traffic.Report, error) {
	ids, err := b.containers(ctx, near, "client")
	if err != nil || len(ids) == 0 {
		return nil, fmt.Errorf("no client: %w", err)
	}
	return b.inside(ctx, near, ids[0], args...)
}

func (b *netBench) inside(ctx context.Context, machine, id string, args ...string) (*traffic.Report, error) {
	out, err := b.docker(ctx, machine, append([]string{"exec", id, "/load"}, args...)...)
	if err != nil {
		return nil, err
	}
	return parse(out)
}

// outside runs a load on a machine, in no container.
func (b *netBench) outside(ctx context.Context, machine string, args ...string) (*traffic.Report, error) {
	path, err := filepath.Abs(loadBinary)
	if err != nil {
		return nil, err
	}
	out, err := b.machine(ctx, "ssh", machine, path+" "+strings.Join(args, " "))
	if err != nil {
		return nil, err
	}
	return parse(out)
}

func parse(text string) (*traffic.Report, error) {
	r := new(traffic.Report)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("a report: %w: %q", err, text)
	}
	if r.Failed > 0 {
		return r, fmt.Errorf("%v", r)
	}
	return r, nil
}

// turns is how often two loads are compared in a round: on two busy processors the
// ratio of one pair is anything between 0.5 and 1.5.
const turns = 3

// compare takes A and B by turns and notes B's ratio to A.
func (b *netBench) compare(ctx context.Context, name string, measure [2]func(context.Context) (*traffic.Report, error), value func(*traffic.Report) float64) error {
	for round := range turns * b.rounds {
		var got [2]float64
		for i := range got {
			turn := (i + round) % 2
			r, err := measure[turn](ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			got[turn] = value(r)
		}
		b.add(name, got[1]/got[0])
	}
	return nil
}
