package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

// measurement is taken of one peer; it leaves no service behind.
type measurement struct {
	name string
	take func(ctx context.Context, p *peer) (map[string]float64, error)
}

func measurements() []measurement {
	return []measurement{
		{"idle", idle},
		{"scale", scale},
		{"replace", replace},
		{"api", requests},
	}
}

const (
	idleTime     = 10 * time.Second
	settleTime   = 2 * time.Second
	replicas     = 50
	createCount  = 1000
	eventCount   = 50
	listServices = 200
	listTasks    = 300
	listRequests = 50
	most         = 2 * time.Minute
)

// spec is a service of the demo's web server that runs so many tasks.
func spec(name string, count uint64) swarm.ServiceSpec {
	delay := time.Duration(0)
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Image: "web:1"},
			RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay},
		},
		Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &count}},
	}
}

func idle(ctx context.Context, p *peer) (map[string]float64, error) {
	if err := pause(ctx, settleTime); err != nil {
		return nil, err
	}
	pids, err := p.processes()
	if err != nil {
		return nil, err
	}
	before, err := cpu(pids)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, idleTime); err != nil {
		return nil, err
	}
	after, err := cpu(pids)
	if err != nil {
		return nil, err
	}
	memory, err := pss(pids)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"idle: PSS of all processes, MB": memory / 1e6,
		"idle: CPU, % of a core":         100 * (after - before) / idleTime.Seconds(),
	}, nil
}

// scale goes from 1 replica to 51, and back.
func scale(ctx context.Context, p *peer) (map[string]float64, error) {
	name := "scale"
	if _, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec(name, 1)}); err != nil {
		return nil, err
	}
	if _, err := p.running(ctx, name, 1); err != nil {
		return nil, err
	}
	usage := func() (mem, seconds float64, err error) {
		pids, err := p.processes()
		if err != nil {
			return 0, 0, err
		}
		mem, err1 := pss(pids)
		seconds, err2 := cpu(pids)
		return mem, seconds, errors.Join(err1, err2)
	}
	mem0, cpu0, err := usage()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := p.setReplicas(ctx, name, 1+replicas); err != nil {
		return nil, err
	}
	if _, err := p.running(ctx, name, 1+replicas); err != nil {
		return nil, err
	}
	up := time.Since(start)
	if err := pause(ctx, settleTime); err != nil {
		return nil, err
	}
	mem1, cpu1, err := usage()
	if err != nil {
		return nil, err
	}
	start = time.Now()
	if err := p.setReplicas(ctx, name, 1); err != nil {
		return nil, err
	}
	if _, err := within(ctx, most, "one container is left", func() (bool, error) {
		l, err := p.client.ContainerList(ctx, client.ContainerListOptions{})
		return err == nil && len(l.Items) == 1, err
	}); err != nil {
		return nil, err
	}
	down := time.Since(start)
	return map[string]float64{
		"scale: 1 to 51 replicas RUNNING, s":        up.Seconds(),
		"scale: containers started, 1/s":            replicas / up.Seconds(),
		"scale: 51 to 1, s":                         down.Seconds(),
		"scale: PSS a container beside its own, MB": (mem1 - mem0) / 1e6 / replicas,
		"scale: CPU of the daemon a container, s":   (cpu1 - cpu0) / replicas,
	}, p.removeServices(ctx)
}

// replace kills a container's process and waits for its replacement.
func replace(ctx context.Context, p *peer) (map[string]float64, error) {
	name := "replace"
	if _, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec(name, 1)}); err != nil {
		return nil, err
	}
	var all []float64
	for range 5 {
		tasks, err := p.running(ctx, name, 1)
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, settleTime/4); err != nil {
			return nil, err
		}
		if err := syscall.Kill(tasks[0].Status.ContainerStatus.PID, syscall.SIGKILL); err != nil {
			return nil, err
		}
		took, err := within(ctx, most, "a replacement", func() (bool, error) {
			l, err := p.tasks(ctx, name)
			for _, t := range l {
				if t.Status.State == swarm.TaskStateRunning && t.ID != tasks[0].ID {
					return true, nil
				}
			}
			return false, err
		})
		if err != nil {
			return nil, err
		}
		all = append(all, took.Seconds())
	}
	return map[string]float64{"replace: killed to replacement RUNNING, s": median(all)}, p.removeServices(ctx)
}

// requests are bare API calls, without containers.
func requests(ctx context.Context, p *peer) (map[string]float64, error) {
	out := map[string]float64{}
	parked := spec("parked", listTasks)
	parked.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.nowhere==1"}}
	if _, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: parked}); err != nil {
		return nil, err
	}
	if _, err := within(ctx, most, "pending tasks", func() (bool, error) {
		l, err := p.tasks(ctx, "parked")
		return len(l) == listTasks, err
	}); err != nil {
		return nil, err
	}
	if err := p.create(ctx, "listed", 1, listServices-1); err != nil {
		return nil, err
	}
	if err := pause(ctx, settleTime); err != nil {
		return nil, err
	}
	var services, tasks []float64
	for range listRequests {
		start := time.Now()
		if _, err := p.client.ServiceList(ctx, client.ServiceListOptions{}); err != nil {
			return nil, err
		}
		services = append(services, time.Since(start).Seconds())
		start = time.Now()
		if _, err := p.client.TaskList(ctx, client.TaskListOptions{}); err != nil {
			return nil, err
		}
		tasks = append(tasks, time.Since(start).Seconds())
	}
	out[fmt.Sprintf("api: GET /services of %d, ms", listServices)] = 1e3 * median(services)
	out[fmt.Sprintf("api: GET /tasks of %d, ms", listTasks)] = 1e3 * median(tasks)
	if err := p.removeServices(ctx); err != nil {
		return nil, err
	}
	for _, clients := range []int{1, 8} {
		start := time.Now()
		if err := p.create(ctx, fmt.Sprintf("made%d", clients), clients, createCount); err != nil {
			return nil, err
		}
		out[fmt.Sprintf("api: service create, %d clients, 1/s", clients)] = createCount / time.Since(start).Seconds()
		if err := p.removeServices(ctx); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// create makes services without tasks, by so many clients at once.
func (p *peer) create(ctx context.Context, prefix string, clients, count int) error {
	g, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		g.Go(func() error {
			for i := c; i < count; i += clients {
				if _, err := p.client.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec(fmt.Sprintf("%s-%d", prefix, i), 0)}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (p *peer) setReplicas(ctx context.Context, name string, count uint64) error {
	s, err := p.client.ServiceInspect(ctx, name, client.ServiceInspectOptions{})
	if err != nil {
		return err
	}
	_, err = p.client.ServiceUpdate(ctx, s.Service.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: spec(name, count)})
	return err
}

// tasks are those of a service that are wanted.
func (p *peer) tasks(ctx context.Context, service string) ([]swarm.Task, error) {
	l, err := p.client.TaskList(ctx, client.TaskListOptions{Filters: client.Filters{}.Add("service", service).Add("desired-state", "running")})
	return l.Items, err
}

// running waits for so many running tasks.
func (p *peer) running(ctx context.Context, service string, count int) (tasks []swarm.Task, err error) {
	_, err = within(ctx, most, fmt.Sprintf("%d tasks of %s", count, service), func() (bool, error) {
		tasks = nil
		l, err := p.tasks(ctx, service)
		for _, t := range l {
			if t.Status.State == swarm.TaskStateRunning {
				tasks = append(tasks, t)
			}
		}
		return len(tasks) == count, err
	})
	return tasks, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
