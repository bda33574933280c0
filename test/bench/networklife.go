package main

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/test/traffic"
)

const (
	victims       = 5
	victimClients = 16
	updateTasks   = 32
	updateRate    = 500
	updateTotal   = 100_000
)

// killed kills half of ten servers under load, by name and from outside: what is
// in flight at that moment may be lost, one request a client at most.
func (b *netBench) killed(ctx context.Context) error {
	for range b.rounds {
		mesh := swarm.PortConfig{Protocol: "tcp", TargetPort: webPort, PublishedPort: 8083, PublishMode: swarm.PortConfigPublishModeIngress}
		if err := b.service(ctx, "web", far, 2*victims, []string{"/web"}, []string{"plain"}, mesh); err != nil {
			return err
		}
		ids, err := b.containers(ctx, far, "web")
		if err != nil {
			return err
		}
		args := append([]string{"kill", "-s", "KILL"}, ids[:victims]...)
		g, gctx := errgroup.WithContext(ctx)
		for name, load := range map[string]loader{
			"by name": func(ctx context.Context) (*traffic.Report, error) { return b.load(ctx, b.killLoad("web", webPort)...) },
			"from outside": func(ctx context.Context) (*traffic.Report, error) {
				return b.outside(ctx, near, b.killLoad(b.boxes[aside].addr, 8083)...)
			},
		} {
			g.Go(func() error {
				r, err := load(gctx)
				if r == nil {
					return err
				}
				b.add("half of 10 servers killed, requests "+name, float64(r.Requests))
				b.add("half of 10 servers killed, lost "+name, float64(r.Failed))
				return nil
			})
		}
		g.Go(func() error {
			if err := pause(gctx, loadTime); err != nil {
				return err
			}
			_, err := b.docker(gctx, far, args...)
			return err
		})
		if err := g.Wait(); err != nil {
			return err
		}
		if err := b.drop(ctx, "web"); err != nil {
			return err
		}
	}
	return nil
}

func (b *netBench) killLoad(host string, port int) []string {
	return []string{"http", "-clients", fmt.Sprint(victimClients), "-kept", fmt.Sprint(victimClients / 2), "-rate", "500", "-for", (3 * loadTime).String(), fmt.Sprintf("http://%s:%d/whoami", host, port)}
}

// updated replaces 32 servers again and again until 100,000 requests were sent,
// by name and from outside, over short and kept connections.
func (b *netBench) updated(ctx context.Context) error {
	mesh := swarm.PortConfig{Protocol: "tcp", TargetPort: webPort, PublishedPort: 8084, PublishMode: swarm.PortConfigPublishModeIngress}
	if err := b.service(ctx, "web", "", updateTasks, []string{"/web"}, []string{"plain"}, mesh); err != nil {
		return err
	}
	load := func(urls []string) []string {
		return append([]string{"http", "-clients", "16", "-kept", "8", "-rate", fmt.Sprint(updateRate / 2), "-count", fmt.Sprint(updateTotal / 2)}, urls...)
	}
	ends, stop := context.WithCancel(ctx)
	defer stop()
	var g, updates errgroup.Group
	var requests, failed [2]float64
	for i, run := range []loader{
		func(ctx context.Context) (*traffic.Report, error) {
			return b.load(ctx, load(whoami([]string{"web"}, webPort))...)
		},
		func(ctx context.Context) (*traffic.Report, error) {
			return b.outside(ctx, near, load(whoami([]string{b.boxes[near].addr, b.boxes[far].addr, b.boxes[aside].addr}, 8084))...)
		},
	} {
		g.Go(func() error {
			r, err := run(ctx)
			if r == nil {
				return err
			}
			if r.Failed > 0 {
				fmt.Println(r)
			}
			requests[i], failed[i] = float64(r.Requests), float64(r.Failed)
			return nil
		})
	}
	count := 0
	updates.Go(func() error {
		for ; ends.Err() == nil; count++ {
			if err := b.update(ctx, "web"); err != nil {
				return err
			}
		}
		return nil
	})
	err := g.Wait()
	stop()
	if e := updates.Wait(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	b.add("updates of 32 servers", float64(count))
	b.add("updates of 32 servers, requests", requests[0]+requests[1])
	b.add("updates of 32 servers, lost by name", failed[0])
	b.add("updates of 32 servers, lost from outside", failed[1])
	return b.drop(ctx, "web")
}

// update replaces all tasks, and waits until it is done.
func (b *netBench) update(ctx context.Context, service string) error {
	s, err := b.api.client.ServiceInspect(ctx, service, client.ServiceInspectOptions{})
	if err != nil {
		return err
	}
	s.Service.Spec.TaskTemplate.ForceUpdate++
	if _, err := b.api.client.ServiceUpdate(ctx, s.Service.ID, client.ServiceUpdateOptions{Version: s.Service.Version, Spec: s.Service.Spec}); err != nil {
		return err
	}
	_, err = within(ctx, most, "the update is done", func() (bool, error) {
		time.Sleep(100 * time.Millisecond)
		now, err := b.api.client.ServiceInspect(ctx, service, client.ServiceInspectOptions{})
		return err == nil && now.Service.UpdateStatus != nil && now.Service.UpdateStatus.State == swarm.UpdateStateCompleted &&
			now.Service.Spec.TaskTemplate.ForceUpdate == s.Service.Spec.TaskTemplate.ForceUpdate, err
	})
	return err
}
