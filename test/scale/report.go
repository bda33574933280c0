package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// report runs the measurement and prints it.
type report struct {
	size   size
	fleet  *fleet
	agents *agents
	heap   uint64 // the most that was seen on the leader
}

const (
	look = 5 * time.Second
	// relaxed is the garbage collector's percentage in the agents' process: what
	// ten thousand computers would do is not to take the managers' time.
	relaxed = 400
)

func (r *report) run(ctx context.Context) error {
	debug.SetGCPercent(relaxed)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.fleet.profile != "" {
		f, err := os.Create(filepath.Join(r.fleet.profile, "agents"))
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // a profile
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Printf("%d agents, %d tasks of %d services, heart-beat %s, %d managers, %d cores\n",
		r.size.Nodes, r.size.Tasks, r.size.Services, r.size.Beat, managers, runtime.NumCPU())
	began := time.Now()
	if _, err := r.leader().do(&order{Do: "nodes", Nodes: r.size.Nodes}); err != nil {
		return err
	}
	r.agents.run(ctx)
	if err := until(ctx, func() bool { return r.agents.ready.Load() >= int64(r.size.Nodes) }); err != nil {
		return fmt.Errorf("%d of %d agents have a session: %w", r.agents.ready.Load(), r.size.Nodes, err)
	}
	fmt.Printf("all agents have sessions and assignments after %.1f s\n", time.Since(began).Seconds())
	took, err := r.tasks(ctx)
	if err != nil {
		return err
	}
	return r.print(took)
}

func (r *report) leader() *child { return r.fleet.managers[0] }

func until(ctx context.Context, ok func() bool) error {
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for !ok() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// tasks creates the services and waits for their tasks.
func (r *report) tasks(ctx context.Context) (time.Duration, error) {
	began, next := time.Now(), time.Now()
	if _, err := r.leader().do(&order{Do: "services", Tasks: r.size.Tasks, Services: r.size.Services}); err != nil {
		return 0, err
	}
	fmt.Printf("%6.1f s: services created\n", time.Since(began).Seconds())
	all := int64(r.size.Tasks)
	var placed bool
	err := until(ctx, func() bool {
		if given := r.agents.given.Load(); !placed && given >= all {
			placed = true
			fmt.Printf("%6.1f s: all tasks placed and with their agents\n", time.Since(began).Seconds())
		}
		if time.Now().After(next) {
			next = time.Now().Add(look)
			if err := r.look(time.Since(began)); err != nil {
				fmt.Fprintln(os.Stderr, "scale:", err)
			}
		}
		return r.agents.running.Load() >= all
	})
	if err != nil {
		return 0, fmt.Errorf("%d of %d tasks run: %w", r.agents.running.Load(), all, err)
	}
	return time.Since(began), r.look(time.Since(began))
}

// look prints how far it is.
func (r *report) look(at time.Duration) error {
	a, err := r.leader().do(&order{Do: "count"})
	if err != nil {
		return err
	}
	if !a.Leads {
		return fmt.Errorf("%s leads no more", r.leader().Node)
	}
	rss, _, err := r.leader().memory()
	if err != nil {
		return err
	}
	r.heap = max(r.heap, a.Heap)
	s := a.States
	fmt.Printf("%6.1f s: %d new, %d pending, %d assigned, %d on the way, %d running; leader: heap %.0f MB, RSS %.0f MB\n", at.Seconds(),
		s[swarm.TaskStateNew], s[swarm.TaskStatePending], s[swarm.TaskStateAssigned],
		s[swarm.TaskStateAccepted]+s[swarm.TaskStatePreparing]+s[swarm.TaskStateReady]+s[swarm.TaskStateStarting],
		s[swarm.TaskStateRunning], float64(a.Heap)/1e6, rss/1e6)
	return nil
}

func (r *report) print(took time.Duration) error {
	fmt.Printf("%d tasks RUNNING after %.1f s: %.0f tasks/s\n", r.size.Tasks, took.Seconds(), float64(r.size.Tasks)/took.Seconds())
	for i, m := range r.fleet.managers {
		_, most, err := m.memory()
		if err != nil {
			return err
		}
		seconds, err := cpu(m.cmd.Process.Pid)
		if err != nil {
			return err
		}
		what := "follower"
		if i == 0 {
			what = fmt.Sprintf("leader (heap at most %.0f MB)", float64(r.heap)/1e6)
		}
		fmt.Printf("%s: RSS at most %.0f MB, %.1f s of processor\n", what, most/1e6, seconds)
	}
	seconds, err := cpu(os.Getpid())
	if err != nil {
		return err
	}
	fmt.Printf("agents: %.1f s of processor; %d sessions broke\n", seconds, r.agents.lost.Load())
	return nil
}
