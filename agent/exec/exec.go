// Package exec is the seam between the agent, which knows what a node should
// run, and whatever runs it. The pure step of a task's state is here too.
package exec

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Executor makes controllers for tasks. Implementations: engine/executor, and
// fakes; all pass exectest.Executor. Safe for concurrent use.
type Executor interface {
	// Describe says what the node is and has.
	Describe(ctx context.Context) (*swarm.NodeDescription, error)
	// Configure passes on the manager's view of this node.
	Configure(ctx context.Context, n *api.Node) error
	// Controller returns a new controller for the task. It has no effects until
	// its methods are called. It must find again what an earlier daemon started.
	Controller(t *api.Task, deps Dependencies) (Controller, error)
	// Adopted lists the ids of tasks for which the node still holds something.
	// The agent ends those that no manager knows: it makes a Controller for a
	// Task that has an ID and an empty Spec, and calls Shutdown and Remove.
	Adopted(ctx context.Context) ([]string, error)
}

// Dependencies reads what a task refers to: only what the managers sent.
type Dependencies interface {
	Secret(id string) (*api.Secret, bool)
	Config(id string) (*api.Config, bool)
	// Network returns a network that the task is attached to, by its id.
	Network(id string) (*api.Network, bool)
}

// Controller runs one task. Methods are called from one goroutine, except
// Close, Status and Logs. All are idempotent: called again after a crash of
// the daemon, they go on from where the node is. Context cancellation stops
// the call, not the task.
type Controller interface {
	// Prepare makes ready all that the task needs: image, volumes, network,
	// container. ErrRejected when it can never succeed.
	Prepare(ctx context.Context) error
	// Start starts it and returns once it runs, and is healthy if it has a
	// health check.
	Start(ctx context.Context) error
	// Wait returns when the task ended: nil for exit status 0, *ExitError
	// otherwise.
	Wait(ctx context.Context) error
	// Shutdown stops it with its signal and grace period, then by force.
	Shutdown(ctx context.Context) error
	// Terminate stops it by force.
	Terminate(ctx context.Context) error
	// Remove removes all that Prepare made. The task has ended.
	Remove(ctx context.Context) error
	// Update takes a new version of the task (desired state aside).
	Update(ctx context.Context, t *api.Task) error
	// Status reads what is known of the container; nil when there is none yet.
	Status(ctx context.Context) (*swarm.ContainerStatus, *swarm.PortStatus, error)
	// Logs streams the task's output until ctx ends, or to its end without
	// follow. publish must not keep the message.
	Logs(ctx context.Context, o LogOptions, publish func(LogMessage) error) error
	// Close releases what the controller itself holds; the task runs on.
	Close() error
}

// Readiness is implemented by controllers of tasks that can live without being
// able to serve. Start returns when the task is ready for the first time.
type Readiness interface {
	// Ready reports whether the task can serve, whether that is known yet, and if it
	// can't, why. changed is closed when that changes; nil: it never does. Safe for
	// concurrent use.
	Ready() (ready, known bool, why string, changed <-chan struct{})
}

// LogOptions select a task's output.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool
	Tail           int // lines; negative: all
	Since          time.Time
}

// LogMessage is a piece of a task's output.
type LogMessage struct {
	Stream string // "stdout" or "stderr"
	At     time.Time
	Data   []byte
	Attrs  map[string]string
}

// ExitError says with which status a task's process ended. Err adds why, as
// "unhealthy" or "out of memory"; it may be empty.
type ExitError struct {
	Code int
	Err  string
}

func (e *ExitError) Error() string {
	s := "task: non-zero exit (" + strconv.Itoa(e.Code) + ")"
	if e.Err != "" {
		s += ": " + e.Err
	}
	return s
}

// ErrRejected marks an error after which a task can never run on this node.
var ErrRejected = errors.New("rejected")

// Rejected marks an error as ErrRejected and leaves its text as it is.
func Rejected(err error) error { return rejection{err} }

type rejection struct{ error }

func (r rejection) Unwrap() []error { return []error{r.error, ErrRejected} }

// ErrTemporary marks an error that a retry may mend.
var ErrTemporary = errors.New("temporary")
