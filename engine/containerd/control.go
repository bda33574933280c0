package containerd

import (
	"context"
	"encoding/json"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legion-swarm/legion/api"
)

const resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"

// Pause implements engine.Runtime.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.freeze(ctx, id, running, paused)
}

// Resume implements engine.Runtime.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.freeze(ctx, id, paused, running)
}

func (r *Runtime) freeze(ctx context.Context, id string, from, to status) error {
	c, err := r.find(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	now := c.status
	c.mu.Unlock()
	if now != from {
		words := map[status]string{running: "is not running", paused: "is not paused"}
		if now == to {
			words[from] = map[status]string{paused: "is already paused", running: "is not paused"}[to]
		}
		return api.Errorf(api.Conflict, "container %s %s", id, words[from])
	}
	err = r.call(ctx, id, "pause or unpause", func(ctx context.Context, s *shim) error {
		if to == paused {
			_, err := s.task.Pause(ctx, &taskapi.PauseRequest{ID: id})
			return err
		}
		_, err := s.task.Resume(ctx, &taskapi.ResumeRequest{ID: id})
		return err
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == from {
		c.status = to
	}
	return nil
}

// Update implements engine.Runtime.
func (r *Runtime) Update(ctx context.Context, id string, res *specs.LinuxResources) error {
	b, err := json.Marshal(res)
	if err != nil {
		return api.Errorf(api.Invalid, "containerd: resources of container %s: %w", id, err)
	}
	return r.call(ctx, id, "update", func(ctx context.Context, s *shim) error {
		_, err := s.task.Update(ctx, &taskapi.UpdateTaskRequest{ID: id, Resources: &anypb.Any{TypeUrl: resourcesType, Value: b}})
		return err
	})
}
