package network

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/legion-swarm/legion/api"
)

// tasksDir is where it is kept which containers are tasks, a file each, below
// Options.RuntimeDir.
const tasksDir = "tasks"

// drainPatience is how long the stop of a task waits for a data plane that is stuck.
const drainPatience = 5 * time.Second

// withdrawPatience is how long it waits for managers to say that other nodes have
// heard of it; they say sooner of which they don't know.
const withdrawPatience = 4 * time.Second

// A task's stages, on its way through the lists of those that serve.
const (
	taskStarting = iota // found by its own names alone
	taskServing
	taskDraining // reached by who knows its address
)

// task is a container that is a task of a service. Never changed once stored.
type task struct {
	Container   string
	ID, Service string
	Stage       int
}

func (n *Networks) tasksDir() string { return filepath.Join(n.o.RuntimeDir, tasksDir) }

// Announce says that a container, which is about to join its networks, is a task.
// It is among those that serve its service once Serve says so. Nothing is noted of
// tasks that are in no overlay, and of those of jobs: nobody is sent to them.
func (n *Networks) Announce(container string, t *api.Task) {
	inOverlay := slices.ContainsFunc(t.Networks, func(a api.NetworkAttachment) bool { return len(a.Addresses) > 0 })
	if t.ServiceID == "" || t.JobIteration != nil || !inOverlay || !validContainerID(container) {
		return
	}
	n.mu.Lock()
	if n.tasks[container] == nil {
		n.setTask(&task{Container: container, ID: t.ID, Service: t.ServiceID})
	}
	n.mu.Unlock()
	n.writeFiles()
}

// Serve says whether a task that was announced can be given work. It does not
// wait; a task that drains stays as it is.
func (n *Networks) Serve(container string, can bool) {
	stage := taskStarting
	if can {
		stage = taskServing
	}
	n.mu.Lock()
	t := n.tasks[container]
	changes := t != nil && t.Stage != stage && t.Stage != taskDraining
	if changes {
		n.setTask(&task{Container: t.Container, ID: t.ID, Service: t.Service, Stage: stage})
	}
	n.mu.Unlock()
	if changes {
		n.writeFiles()
		n.kick()
	}
}

// Drain takes a task out of all lists and names on this node, and returns when
// that is done; its connections are left alone. It waits for no sandbox that is made
// or removed meanwhile. It reports whether the task was in a list before: then
// others may not have heard yet.
func (n *Networks) Drain(ctx context.Context, container string) (was bool, err error) {
	n.mu.Lock()
	t := n.tasks[container]
	if t == nil || t.Stage == taskDraining {
		n.mu.Unlock()
		return false, nil
	}
	n.setTask(&task{Container: t.Container, ID: t.ID, Service: t.Service, Stage: taskDraining})
	n.mu.Unlock()
	n.writeFiles()
	limited, cancel := context.WithTimeout(ctx, drainPatience)
	defer cancel()
	err = n.set.takeBack(limited, n.config)
	n.kick() // what is left to do, and what could not be done, Run does
	if ctx.Err() != nil {
		return false, err
	}
	return t.Stage == taskServing, nil
}

// Withdrawn returns when no node sends new work to tasks of this one that drain and
// are to end, as managers know from those nodes, or an error that says why that is not
// known: after withdrawPatience at the latest.
func (n *Networks) Withdrawn(ctx context.Context) error {
	n.mu.Lock()
	s := n.places.swarm
	n.mu.Unlock()
	if s == nil {
		return api.Errorf(api.Unavailable, "network: this node is part of no swarm")
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawPatience)
	defer cancel()
	return s.Withdrawn(ctx)
}

// setTask takes it on and has it written down. Callers hold mu, and write the files
// then.
func (n *Networks) setTask(t *task) {
	n.tasks[t.Container] = t
	n.outdateTask(t.Container)
	n.files.want(n.tasksDir(), t.Container, t)
}

// dropTask forgets a task, whose container has left. Callers write the files then.
func (n *Networks) dropTask(container string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tasks[container] == nil {
		return
	}
	delete(n.tasks, container)
	n.files.want(n.tasksDir(), container, nil)
}

// outdateTask outdates the networks that a container is in. Callers hold mu.
func (n *Networks) outdateTask(container string) {
	if b := n.boxes[container]; b != nil {
		for _, e := range b.Endpoints {
			n.outdate(e.NetworkID)
		}
	}
}

func (n *Networks) loadTasks() error {
	tasks, err := loadAll(n.tasksDir(), func(t *task) string { return t.Container }, func(path string, err error) {
		n.log.Error("network: it can't be read whether a task serves; it is said again", "file", path, "error", err)
	})
	n.tasks = tasks
	return err
}

func (n *Networks) taskContainers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.tasks))
}
