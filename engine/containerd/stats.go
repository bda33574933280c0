package containerd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	docker "github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

// Pids implements engine.Runtime.
func (r *Runtime) Pids(_ context.Context, id string) ([]int, error) {
	c, err := r.find(id)
	if err != nil {
		return nil, err
	}
	if _, err := c.live(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	dir, err := cgroupOf(pid)
	if err != nil {
		return nil, api.Errorf(api.Conflict, "container %s is not running: %w", id, err)
	}
	return pidsBelow(dir)
}

// cgroupOf finds the folder of a process's cgroup: the pids controller's on
// cgroup v1 and hybrid hosts, else the unified one.
func cgroupOf(pid int) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	unified := ""
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" {
			unified = f[2]
		}
		for _, controller := range []string{"pids", "memory", "freezer"} {
			if slices.Contains(strings.Split(f[1], ","), controller) {
				return filepath.Join("/sys/fs/cgroup", controller, f[2]), nil
			}
		}
	}
	return filepath.Join("/sys/fs/cgroup", unified), nil
}

func pidsBelow(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil // removed meanwhile
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// Stats implements engine.Runtime.
func (r *Runtime) Stats(ctx context.Context, id string) (*docker.StatsResponse, error) {
	var resp *taskapi.StatsResponse
	err := r.call(ctx, id, "read statistics of", func(ctx context.Context, s *shim) (err error) {
		resp, err = s.task.Stats(ctx, &taskapi.StatsRequest{ID: id})
		return err
	})
	if err != nil {
		return nil, err
	}
	st := &docker.StatsResponse{ID: id, Read: time.Now()}
	return st, metricsInto(st, resp.GetStats())
}
