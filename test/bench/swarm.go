package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// The machines of the swarm that is measured.
const (
	lead, second, third = "m1", "m2", "m3" // managers
	worker, spare       = "w1", "w2"
)

// swarms measures a swarm of three managers and two workers, a new one in each
// round.
func swarms(ctx context.Context, rounds int, peers []*peer, r *results) error {
	for range rounds {
		for _, p := range peers {
			dockerd := ""
			if p.name != "legion" {
				dockerd = p.command[0]
			}
			if err := measureSwarm(ctx, dockerd, func(name string, v float64) { r.add("swarm: "+name, p.name, v) }); err != nil {
				return fmt.Errorf("swarm: %s: %w", p.name, err)
			}
		}
	}
	return nil
}

type adder func(name string, v float64)

func measureSwarm(ctx context.Context, dockerd string, add adder) (err error) {
	f, err := newFleet(ctx, dockerd, lead, second, third, worker, spare)
	defer func() { err = errors.Join(err, f.remove()) }()
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, adder) error{f.form, f.idle, f.requests, f.events, f.workerDies, f.partition, f.leaderDies} {
		if err := part(ctx, add); err != nil {
			return err
		}
	}
	return nil
}

// form makes the swarm.
func (f *fleet) form(ctx context.Context, add adder) error {
	timed := func(name string, do func() error) error {
		start := time.Now()
		err := do()
		add(name+" until Ready, s", time.Since(start).Seconds())
		return err
	}
	m := f.boxes[lead]
	if err := timed("init", func() error {
		if _, err := m.client.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0" + swarmPort, AdvertiseAddr: m.addr + swarmPort}); err != nil {
			return err
		}
		return f.ready(ctx, lead, lead)
	}); err != nil {
		return err
	}
	for _, name := range []string{worker, spare} {
		if err := timed("join as worker", func() error { return f.join(ctx, name, lead, false) }); err != nil {
			return err
		}
	}
	for _, name := range []string{second, third} {
		if err := timed("join as manager", func() error { return f.join(ctx, name, lead, true) }); err != nil {
			return err
		}
	}
	return f.ready(ctx, lead, lead, second, third, worker, spare)
}

// idle is of the daemons with all that they run, before there is any container.
func (f *fleet) idle(ctx context.Context, add adder) error {
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	kinds := map[string]string{"worker": worker, "manager": second, "leader": lead}
	pids, before := map[string][]int{}, map[string]float64{}
	for kind, name := range kinds {
		var err error
		if pids[kind], err = f.boxes[name].processes(); err != nil {
			return err
		}
		if before[kind], err = cpu(pids[kind]); err != nil {
			return err
		}
	}
	if err := pause(ctx, idleTime); err != nil {
		return err
	}
	for _, kind := range []string{"worker", "manager", "leader"} {
		after, err := cpu(pids[kind])
		if err != nil {
			return err
		}
		memory, err := pss(pids[kind])
		if err != nil {
			return err
		}
		add("idle "+kind+": PSS, MB", memory/1e6)
		add("idle "+kind+": CPU, % of a core", 100*(after-before[kind])/idleTime.Seconds())
	}
	return nil
}

func (f *fleet) requests(ctx context.Context, add adder) error {
	for _, at := range []string{lead, second} {
		p := &peer{client: f.boxes[at].client}
		where := map[string]string{lead: "the leader", second: "a follower"}[at]
		for _, clients := range []int{1, 8} {
			start := time.Now()
			if err := p.create(ctx, fmt.Sprint("made", clients), clients, createCount); err != nil {
				return err
			}
			add(fmt.Sprintf("service create at %s, %d clients, 1/s", where, clients), createCount/time.Since(start).Seconds())
			if err := p.removeServices(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// events is from the request for a service at the leader until another manager's
// users see the event.
func (f *fleet) events(ctx context.Context, add adder) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := f.boxes[second].client.Events(watching, client.EventsListOptions{Filters: client.Filters{}.Add("type", "service").Add("event", "create")})
	if err := pause(ctx, settleTime/4); err != nil {
		return err
	}
	p := &peer{client: f.boxes[lead].client}
	var all []float64
	for i := range eventCount {
		start := time.Now()
		if err := p.create(ctx, fmt.Sprint("told", i), 1, 1); err != nil {
			return err
		}
		select {
		case <-stream.Messages:
			all = append(all, time.Since(start).Seconds())
		case err := <-stream.Err:
			return err
		case <-time.After(most):
			return errors.New("no event of a service that was created")
		}
	}
	add("service create to its event at a follower, ms", 1e3*median(all))
	add("the same, the slowest, ms", 1e3*slices.Max(all))
	return p.removeServices(ctx)
}

// service runs one task on each worker, and returns when both do.
func (f *fleet) service(ctx context.Context) error {
	if err := f.load(ctx, worker, spare); err != nil {
		return err
	}
	s := spec("web", 2)
	s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}}
	p := &peer{client: f.boxes[lead].client}
	if _, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: s}); err != nil {
		return err
	}
	_, err := p.running(ctx, "web", 2)
	return err
}

// replaced waits until both tasks run on one node.
func (f *fleet) replaced(ctx context.Context, name string) error {
	n, err := f.boxes[name].client.Info(ctx, client.InfoOptions{})
	if err != nil {
		return err
	}
	p := &peer{client: f.boxes[lead].client}
	_, err = within(ctx, most/3, "a replacement on "+name, func() (bool, error) {
		l, err := p.tasks(ctx, "web")
		count := 0
		for _, t := range l {
			err = errors.Join(err, fmt.Errorf("task %s on %s is %s: %s", t.ID, t.NodeID, t.Status.State, t.Status.Err))
			if t.Status.State == swarm.TaskStateRunning && t.NodeID == n.Info.Swarm.NodeID {
				count++
			}
		}
		return count == 2, err
	})
	return err
}

// spread has the tasks run on both workers again.
func (f *fleet) spread(ctx context.Context) error {
	if err := f.ready(ctx, lead, worker, spare); err != nil {
		return err
	}
	p := &peer{client: f.boxes[lead].client}
	for _, count := range []uint64{0, 2} {
		s, err := p.client.ServiceInspect(ctx, "web", client.ServiceInspectOptions{})
		if err != nil {
			return err
		}
		s.Service.Spec.Mode.Replicated.Replicas = &count
		if _, err := p.client.ServiceUpdate(ctx, s.Service.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: s.Service.Spec}); err != nil {
			return err
		}
		if _, err := within(ctx, most, "the service is scaled", func() (bool, error) {
			l, err := p.tasks(ctx, "web")
			return len(l) == int(count), err
		}); err != nil {
			return err
		}
	}
	_, err := p.running(ctx, "web", 2)
	return err
}

func (f *fleet) workerDies(ctx context.Context, add adder) error {
	if err := f.service(ctx); err != nil {
		return err
	}
	start := time.Now()
	if err := f.boxes[worker].end(); err != nil {
		return err
	}
	if err := f.replaced(ctx, spare); err != nil {
		return err
	}
	add("worker killed to replacement RUNNING, s", time.Since(start).Seconds())
	if err := f.revive(ctx, worker); err != nil {
		return err
	}
	return f.spread(ctx)
}

// partition is silence, at the default heart-beat and at the shortest.
func (f *fleet) partition(ctx context.Context, add adder) error {
	for _, period := range []time.Duration{0, time.Second} {
		name := "silence to replacement RUNNING, s"
		if period > 0 {
			name = fmt.Sprintf("silence to replacement RUNNING, heart-beat %v, s", period)
			if err := f.setHeartbeat(ctx, period); err != nil {
				return err
			}
		}
		start := time.Now()
		if _, err := f.machine(ctx, "disconnect", worker); err != nil {
			return err
		}
		if err := f.replaced(ctx, spare); err != nil {
			return err
		}
		add(name, time.Since(start).Seconds())
		if _, err := f.machine(ctx, "connect", worker); err != nil {
			return err
		}
		if err := f.spread(ctx); err != nil {
			return err
		}
	}
	return nil
}

// setHeartbeat changes the period and waits until all nodes know it.
func (f *fleet) setHeartbeat(ctx context.Context, period time.Duration) error {
	c := f.boxes[lead].client
	s, err := c.SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	old := s.Swarm.Spec.Dispatcher.HeartbeatPeriod
	s.Swarm.Spec.Dispatcher.HeartbeatPeriod = period
	if _, err := c.SwarmUpdate(ctx, client.SwarmUpdateOptions{Version: s.Swarm.Version, Spec: s.Swarm.Spec}); err != nil {
		return err
	}
	return pause(ctx, old+settleTime)
}

// leaderDies is about the next write at another manager.
func (f *fleet) leaderDies(ctx context.Context, add adder) error {
	p := &peer{client: f.boxes[second].client}
	if err := f.leads(ctx, lead); err != nil {
		return err
	}
	start := time.Now()
	if err := f.boxes[lead].end(); err != nil {
		return err
	}
	tries := 0
	if _, err := within(ctx, most, "the next write", func() (bool, error) {
		tries++
		_, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec(fmt.Sprint("next", tries), 0)})
		return err == nil, err
	}); err != nil {
		return err
	}
	add("leader killed to next write accepted, s", time.Since(start).Seconds())
	return f.revive(ctx, lead)
}

// leads is an error if a machine does not lead the swarm.
func (f *fleet) leads(ctx context.Context, name string) error {
	l, err := f.boxes[second].client.NodeList(ctx, client.NodeListOptions{})
	if err != nil {
		return err
	}
	for _, n := range l.Items {
		if n.ManagerStatus != nil && n.ManagerStatus.Leader && n.Description.Hostname == name {
			return nil
		}
	}
	return fmt.Errorf("%s does not lead any more: the machine is too busy to measure", name)
}
