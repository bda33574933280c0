package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

const statsPeriod = time.Second

// ContainerStats calls fn once without stream (primed with two samples unless
// oneShot), else every second until ctx or the container ends.
func (e *Engine) ContainerStats(ctx context.Context, name string, stream, oneShot bool, fn func(*container.StatsResponse) error) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	var prev *container.StatsResponse
	if stream || !oneShot {
		if prev, err = c.sample(ctx, nil); err != nil {
			return err
		}
		if stream {
			if err := fn(prev); err != nil {
				return err
			}
		}
	}
	if !stream && oneShot {
		s, err := c.sample(ctx, nil)
		if err != nil {
			return err
		}
		return fn(s)
	}
	t := time.NewTicker(statsPeriod)
	defer t.Stop()
	for {
		var ended <-chan struct{}
		c.mu.Lock()
		gone := c.gone
		if c.run != nil {
			ended = c.run.ended
		}
		c.mu.Unlock()
		select {
		case <-t.C:
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
		if gone {
			return nil
		}
		s, err := c.sample(ctx, prev)
		if err != nil {
			return err
		}
		if err := fn(s); err != nil || !stream {
			return err
		}
		prev = s
	}
}

// sample reads a container's use of the host; of one that does not run it is
// empty, as with Docker.
func (c *ctr) sample(ctx context.Context, prev *container.StatsResponse) (*container.StatsResponse, error) {
	r := c.snapshot()
	s := &container.StatsResponse{}
	if r.Phase == phaseRunning {
		got, err := c.e.cfg.Runtime.Stats(ctx, c.id)
		switch {
		case err == nil:
			s = got
			s.Networks = interfaces(r.Pid)
			if s.Read.IsZero() {
				s.Read = c.e.cfg.Now()
			}
		case !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound):
			return nil, err
		}
	}
	s.ID, s.Name, s.OSType = c.id, "/"+r.Name, "linux"
	if prev != nil {
		s.PreCPUStats, s.PreRead = prev.CPUStats, prev.Read
	}
	return s, nil
}

// interfaces reads the counters of a process's network namespace, proc(5).
func interfaces(pid int) map[string]container.NetworkStats {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "net/dev"))
	if err != nil {
		return nil
	}
	return parseInterfaces(string(b))
}

func parseInterfaces(text string) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			return v
		}
		out[name] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	return out
}

// ContainerUpdate changes limits and the restart policy.
func (e *Engine) ContainerUpdate(ctx context.Context, name string, u *container.UpdateConfig) (*container.UpdateResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	if err := c.begin(ctx); err != nil {
		return nil, err
	}
	defer c.end()
	rec := c.snapshot()
	if rec.Phase == phaseRemoving || rec.Phase == phaseDead {
		return nil, api.Errorf(api.Conflict, "cannot update container %s: container is marked for removal and cannot be %q", c.id, "update")
	}
	h := *rec.Host
	if err := mergeResources(&h.Resources, &u.Resources); err != nil {
		return nil, err
	}
	if u.RestartPolicy.Name != "" {
		if h.AutoRemove && !u.RestartPolicy.IsNone() {
			return nil, api.Errorf(api.Invalid, "restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
			return nil, api.Errorf(api.Invalid, "%w", err)
		}
		h.RestartPolicy = u.RestartPolicy
	}
	if err := e.validateResources(&h.Resources); err != nil {
		return nil, err
	}
	if rec.Phase == phaseRunning {
		res, err := resources(&h.Resources, nil)
		if err != nil {
			return nil, err
		}
		if err := e.cfg.Runtime.Update(ctx, c.id, res); err != nil {
			return nil, fmt.Errorf("cannot update container %s: %w", c.id, err)
		}
	}
	if err := c.change(func(r *record) { r.Host = &h }); err != nil {
		return nil, err
	}
	c.event("update", nil)
	return &container.UpdateResponse{Warnings: []string{}}, nil
}

// mergeResources puts what an update says over what there is.
func mergeResources(to, u *container.Resources) error {
	if to.NanoCPUs > 0 && (u.CPUPeriod > 0 || u.CPUQuota > 0) {
		return api.Errorf(api.Invalid, "Conflicting options: CPU Period and Quota cannot be updated as NanoCPUs has already been set")
	}
	if (to.CPUPeriod > 0 || to.CPUQuota > 0) && u.NanoCPUs > 0 {
		return api.Errorf(api.Invalid, "Conflicting options: NanoCPUs cannot be updated as CPU Period or Quota has already been set")
	}
	if u.Memory != 0 {
		if to.MemorySwap > 0 && u.Memory > to.MemorySwap && u.MemorySwap == 0 {
			return api.Errorf(api.Invalid, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
		}
		to.Memory = u.Memory
	}
	for _, f := range []struct{ to, u *int64 }{
		{&to.CPUShares, &u.CPUShares}, {&to.NanoCPUs, &u.NanoCPUs}, {&to.CPUPeriod, &u.CPUPeriod}, {&to.CPUQuota, &u.CPUQuota},
		{&to.MemorySwap, &u.MemorySwap}, {&to.MemoryReservation, &u.MemoryReservation},
		{&to.CPURealtimePeriod, &u.CPURealtimePeriod}, {&to.CPURealtimeRuntime, &u.CPURealtimeRuntime},
	} {
		if *f.u != 0 {
			*f.to = *f.u
		}
	}
	if u.BlkioWeight != 0 {
		to.BlkioWeight = u.BlkioWeight
	}
	if u.CpusetCpus != "" {
		to.CpusetCpus = u.CpusetCpus
	}
	if u.CpusetMems != "" {
		to.CpusetMems = u.CpusetMems
	}
	if u.PidsLimit != nil {
		to.PidsLimit = u.PidsLimit
	}
	return nil
}
