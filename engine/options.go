package engine

import (
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// HealthConfig is Docker's.
type HealthConfig = container.HealthConfig

// CreateOptions are for ContainerCreate.
type CreateOptions struct {
	// Name without the leading slash; empty: one is made up.
	Name       string
	Config     *container.Config
	Host       *container.HostConfig
	Networking *network.NetworkingConfig
	Platform   *ocispec.Platform
	// Managed marks a task's container: it is not restarted by the engine.
	Managed bool
	// Files are put in the container in memory (tmpfs), for secrets and configs.
	Files []File
}

// File is a file given to a container by value.
type File struct {
	Path     string // absolute, in the container
	Data     []byte
	UID, GID int
	Mode     uint32
	Secret   bool // memory only, never on disk
}

// ContainerListOptions are for ContainerList.
type ContainerListOptions struct {
	All     bool
	Size    bool
	Limit   int
	Filters api.Filters
}

// LogsOptions are for ContainerLogs.
type LogsOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time // zero: no bound
	Follow         bool
	Tail           int // lines; negative: all
}

// LogMessage is one line (or part of a long one) of a container's output.
type LogMessage struct {
	Source  string // "stdout" or "stderr"
	At      time.Time
	Line    []byte // with its newline unless Partial
	Partial bool
	Attrs   map[string]string // what --details shows
}

// AttachOptions are for ContainerAttach and ExecStart. Streams that are nil
// are not attached. Detach keys end an attachment with ErrDetached.
type AttachOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Stream, Logs   bool
	DetachKeys     string
}

// StopOptions are for ContainerStop and ContainerRestart.
type StopOptions struct {
	Signal  string // empty: the container's
	Timeout *int   // seconds; nil: the container's, negative: for ever
}

// RemoveOptions are for ContainerRemove.
type RemoveOptions struct{ Force, Volumes bool }

// EventsOptions are for Events.
type EventsOptions struct {
	Since, Until time.Time // zero: no bound
	Filters      api.Filters
}

// CommitOptions are for Commit.
type CommitOptions struct {
	Ref, Comment, Author string
	Pause                bool
	Changes              []string
	Config               *container.Config
}

// ExecState is what is known of an exec.
type ExecState struct {
	ID, ContainerID string
	Running         bool
	ExitCode        *int
	Pid             int
	Config          container.ExecCreateRequest
	CanRemove       bool
	DetachKeys      string
}
