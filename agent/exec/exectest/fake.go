package exectest

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

// Script says how a task behaves on a Fake.
type Script struct {
	// Prepare is called for each try; nil: succeeds.
	Prepare func(ctx context.Context) error
	// Start is called when the task starts for the first time, and returns when
	// it runs; nil: succeeds.
	Start func(ctx context.Context) error
	// Exits has the task end by itself, with Code, when it has started.
	Exits bool
	Code  int
	// Lines are what it prints to stdout when it starts.
	Lines []string
	// LogsErr is what reading its logs ends with; nil: they can be read.
	LogsErr error
}

// Fake is an executor whose containers are values in memory. It stands for a
// node: executors made by Restart share its containers, as daemons do that run
// one after the other. Safe for concurrent use.
type Fake struct {
	script func(t *api.Task) Script

	mu         sync.Mutex
	containers map[string]*container
	node       *api.Node
	next       int
	starts     map[string]int
}

type container struct {
	id      string
	pid     int
	script  Script
	started bool
	ended   chan struct{}
	code    int
	lines   []exec.LogMessage
	more    chan struct{} // closed and replaced when lines grow
}

var _ exec.Executor = (*Fake)(nil)

// NewFake returns a node without containers. script says how each task behaves;
// nil: all run until they are stopped.
func NewFake(script func(t *api.Task) Script) *Fake {
	if script == nil {
		script = func(*api.Task) Script { return Script{} }
	}
	return &Fake{script: script, containers: map[string]*container{}, starts: map[string]int{}}
}

// Describe implements exec.Executor.
func (f *Fake) Describe(context.Context) (*swarm.NodeDescription, error) {
	return &swarm.NodeDescription{
		Hostname: "fake", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"},
		Resources: swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30},
		Engine:    swarm.EngineDescription{EngineVersion: "1.0"},
	}, nil
}

// Configure implements exec.Executor.
func (f *Fake) Configure(_ context.Context, n *api.Node) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.node = n
	return nil
}

// Node returns what was last configured.
func (f *Fake) Node() *api.Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.node
}

// Adopted implements exec.Executor.
func (f *Fake) Adopted(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id := range f.containers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids, nil
}

// Controller implements exec.Executor.
func (f *Fake) Controller(t *api.Task, _ exec.Dependencies) (exec.Controller, error) {
	return &controller{fake: f, task: t}, nil
}

// Running lists the tasks whose containers run.
func (f *Fake) Running() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []string
	for id, c := range f.containers {
		if c.running() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Starts tells how often the task's process was started.
func (f *Fake) Starts(task string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[task]
}

// Kill ends a task's process with this code, as if it did so itself. It reports
// whether it ran.
func (f *Fake) Kill(task string, code int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[task]
	if c == nil || !c.running() {
		return false
	}
	c.exit(code)
	return true
}

// Print has a task's process print a line.
func (f *Fake) Print(task, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[task]; c != nil {
		c.print(line)
	}
}

// Lose removes all containers, as a reboot does.
func (f *Fake) Lose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if c.running() {
			c.exit(137)
		}
	}
	f.containers = map[string]*container{}
}

func (c *container) running() bool {
	if !c.started {
		return false
	}
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

func (c *container) exit(code int) {
	c.code = code
	close(c.ended)
}

func (c *container) print(line string) {
	c.lines = append(c.lines, exec.LogMessage{Stream: "stdout", At: time.Now().UTC(), Data: []byte(line + "\n")})
	close(c.more)
	c.more = make(chan struct{})
}
