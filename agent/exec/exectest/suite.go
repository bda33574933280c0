package exectest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

// patience is how long the suite waits for what should come soon.
const patience = 30 * time.Second

// Harness gives the suite a node to work on. Each call for a task returns a new
// one, with an id of its own.
type Harness struct {
	// Restart returns an executor as after a restart of the daemon: a new one on
	// the same node. The one before is not used any more.
	Restart func(t *testing.T) exec.Executor
	// Sleep returns a task that runs until it is stopped.
	Sleep func(t *testing.T) *api.Task
	// Exit returns a task that ends at once with the code.
	Exit func(t *testing.T, code int) *api.Task
	// Print returns a task that prints the lines to stdout and ends with 0.
	Print func(t *testing.T, lines ...string) *api.Task
	// Missing returns a task whose image does not exist; nil: not tried.
	Missing func(t *testing.T) *api.Task
	// Dependencies are what tasks refer to; nil: nothing.
	Dependencies exec.Dependencies
}

// Executor holds an executor to its contract.
func Executor(t *testing.T, h Harness) {
	if h.Dependencies == nil {
		h.Dependencies = nothing{}
	}
	for name, f := range map[string]func(*testing.T, *node){
		"runs until it is stopped":              runsUntilStopped,
		"every call can be made twice":          twice,
		"the exit status is told":               exitStatus,
		"what ended is not started again":       noSecondRun,
		"stopping what was never made":          stopNothing,
		"a restart finds the task again":        adopted,
		"a restart finds what ended meanwhile":  endedMeanwhile,
		"a context ends the call, not the task": waitCancelled,
		"terminate":                             terminate,
		"the output is kept":                    output,
		"an image that is missing":              missing,
		"a node describes itself":               describes,
	} {
		t.Run(name, func(t *testing.T) { f(t, &node{Harness: h, executor: h.Restart(t)}) })
	}
}

type nothing struct{}

func (nothing) Secret(string) (*api.Secret, bool)   { return nil, false }
func (nothing) Config(string) (*api.Config, bool)   { return nil, false }
func (nothing) Network(string) (*api.Network, bool) { return nil, false }

type node struct {
	Harness
	executor exec.Executor
}

func (n *node) restart(t *testing.T) { n.executor = n.Restart(t) }

// controller returns a controller; the task is removed when the test ends.
func (n *node) controller(t *testing.T, task *api.Task) exec.Controller {
	t.Helper()
	c, err := n.executor.Controller(task, n.Dependencies)
	if err != nil {
		t.Fatal("Controller:", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(c.Terminate(ctx), c.Remove(ctx), c.Close()); err != nil {
			t.Error("cleaning up:", err)
		}
	})
	return c
}

// started returns a controller of a task that runs, or ran.
func (n *node) started(t *testing.T, task *api.Task) exec.Controller {
	t.Helper()
	c := n.controller(t, task)
	do(t, "Prepare", c.Prepare)
	do(t, "Start", c.Start)
	return c
}

func do(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	if err := try(f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func try(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return f(ctx)
}

func pid(t *testing.T, c exec.Controller) int {
	t.Helper()
	s, _, err := c.Status(t.Context())
	if err != nil || s == nil || s.ContainerID == "" {
		t.Fatalf("Status = %+v, %v; want a container", s, err)
	}
	return s.PID
}

func code(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &exit) {
		t.Fatalf("Wait = %v; want an exit status", err)
	}
	return exit.Code
}

func runsUntilStopped(t *testing.T, n *node) {
	task := n.Sleep(t)
	c := n.started(t, task)
	if pid(t, c) == 0 {
		t.Error("a running task has no pid")
	}
	waited := make(chan error, 1)
	go func() { waited <- try(c.Wait) }()
	other, err := n.executor.Controller(task, n.Dependencies)
	if err != nil {
		t.Fatal(err)
	}
	do(t, "Shutdown", other.Shutdown)
	<-waited //nolint:errcheck // its end is what counts
	if pid(t, c) != 0 {
		t.Error("a stopped task has a pid")
	}
	do(t, "Remove", c.Remove)
	if s, _, err := c.Status(t.Context()); s != nil || err != nil {
		t.Errorf("Status after Remove = %+v, %v; want nothing", s, err)
	}
	ids, err := n.executor.Adopted(t.Context())
	if err != nil || slices.Contains(ids, task.ID) {
		t.Errorf("Adopted after Remove = %v, %v", ids, err)
	}
}

func twice(t *testing.T, n *node) {
	c := n.started(t, n.Sleep(t))
	before := pid(t, c)
	do(t, "second Prepare", c.Prepare)
	do(t, "second Start", c.Start)
	if after := pid(t, c); after != before {
		t.Errorf("a second Start made a second process: %d, then %d", before, after)
	}
	do(t, "Shutdown", c.Shutdown)
	do(t, "second Shutdown", c.Shutdown)
	do(t, "Remove", c.Remove)
	do(t, "second Remove", c.Remove)
}

func exitStatus(t *testing.T, n *node) {
	for _, want := range []int{0, 7} {
		c := n.started(t, n.Exit(t, want))
		if got := code(t, try(c.Wait)); got != want {
			t.Errorf("Wait told status %d, want %d", got, want)
		}
		if s, _, err := c.Status(t.Context()); err != nil || s == nil || s.ExitCode != want {
			t.Errorf("Status = %+v, %v; want exit code %d", s, err, want)
		}
	}
}

func noSecondRun(t *testing.T, n *node) {
	c := n.started(t, n.Print(t, "once"))
	do(t, "Wait", c.Wait)
	do(t, "Start after the end", c.Start)
	do(t, "Wait after the end", c.Wait)
	if got := lines(t, c, -1); len(got) != 1 {
		t.Errorf("printed %q; want one line: a task runs once", got)
	}
}

func stopNothing(t *testing.T, n *node) {
	c := n.controller(t, &api.Task{ID: api.NewID(), Spec: &api.TaskSpec{}})
	do(t, "Shutdown", c.Shutdown)
	do(t, "Terminate", c.Terminate)
	do(t, "Remove", c.Remove)
	if s, _, err := c.Status(t.Context()); s != nil || err != nil {
		t.Errorf("Status = %+v, %v; want nothing", s, err)
	}
}

func adopted(t *testing.T, n *node) {
	task := n.Sleep(t)
	before := pid(t, n.started(t, task))
	n.restart(t)
	ids, err := n.executor.Adopted(t.Context())
	if err != nil || !slices.Contains(ids, task.ID) {
		t.Fatalf("Adopted = %v, %v; want %s in it", ids, err, task.ID)
	}
	c := n.controller(t, task)
	do(t, "Start after restart", c.Start)
	if after := pid(t, c); after != before {
		t.Errorf("pid %d, after the restart %d", before, after)
	}
	// The agent ends what no manager knows by its id alone.
	bare := n.controller(t, &api.Task{ID: task.ID, Spec: &api.TaskSpec{}})
	do(t, "Shutdown", bare.Shutdown)
	do(t, "Remove", bare.Remove)
}

func endedMeanwhile(t *testing.T, n *node) {
	task := n.Exit(t, 7)
	c := n.started(t, task)
	_ = code(t, try(c.Wait))
	n.restart(t)
	again := n.controller(t, task)
	if got := code(t, try(again.Wait)); got != 7 {
		t.Errorf("Wait told status %d after a restart, want 7", got)
	}
}

func waitCancelled(t *testing.T, n *node) {
	c := n.started(t, n.Sleep(t))
	before := pid(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- c.Wait(ctx) }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want the context's error", err)
	}
	if after := pid(t, c); after != before {
		t.Errorf("pid %d, then %d", before, after)
	}
}

func terminate(t *testing.T, n *node) {
	c := n.started(t, n.Sleep(t))
	do(t, "Terminate", c.Terminate)
	if code(t, try(c.Wait)) == 0 {
		t.Error("a task that was terminated ended with 0")
	}
}

func lines(t *testing.T, c exec.Controller, tail int) []string {
	t.Helper()
	var got []string
	err := try(func(ctx context.Context) error {
		o := exec.LogOptions{Stdout: true, Stderr: true, Tail: tail}
		return c.Logs(ctx, o, func(m exec.LogMessage) error {
			if m.Stream != "stdout" || m.At.IsZero() {
				t.Errorf("message of stream %q at %v", m.Stream, m.At)
			}
			got = append(got, strings.TrimRight(string(m.Data), "\r\n"))
			return nil
		})
	})
	if err != nil {
		t.Fatal("Logs:", err)
	}
	return got
}

func output(t *testing.T, n *node) {
	want := []string{"one", "two", "three"}
	c := n.started(t, n.Print(t, want...))
	do(t, "Wait", c.Wait)
	if got := lines(t, c, -1); !slices.Equal(got, want) {
		t.Errorf("Logs = %q, want %q", got, want)
	}
	if got := lines(t, c, 2); !slices.Equal(got, want[1:]) {
		t.Errorf("Logs with tail 2 = %q, want %q", got, want[1:])
	}
}

func missing(t *testing.T, n *node) {
	if n.Missing == nil {
		return
	}
	c := n.controller(t, n.Missing(t))
	err := try(c.Prepare)
	if err == nil || errors.Is(err, exec.ErrTemporary) {
		t.Errorf("Prepare = %v; want an error that no retry mends", err)
	}
}

func describes(t *testing.T, n *node) {
	d, err := n.executor.Describe(t.Context())
	if err != nil || d.Hostname == "" || d.Platform.OS == "" || d.Platform.Architecture == "" ||
		d.Resources.NanoCPUs <= 0 || d.Resources.MemoryBytes <= 0 || d.Engine.EngineVersion == "" {
		t.Errorf("Describe = %+v, %v; want host name, platform, resources and version", d, err)
	}
}
