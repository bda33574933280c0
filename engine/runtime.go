package engine

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Runtime runs containers' processes. The real one is package
// engine/containerd; both it and the fake pass the conformance suite
// enginetest.Runtime. All methods are safe for concurrent use. Errors carry
// an api.Class (NotFound for an unknown id).
type Runtime interface {
	// MakeRootfs makes the writable root file system for id from the image,
	// without a process. Create with ReuseRootfs goes on with it. NotFound for
	// an unknown image; on error nothing is left behind.
	MakeRootfs(ctx context.Context, id, image, platform string, sizeBytes int64) error
	// Create makes the writable root file system for id from the image and the container's init process, which waits for Start.
	// rootfs-independent parts of the spec are the engine's; Runtime fills in
	// Root.Path and Linux.CgroupsPath, which the engine leaves empty or sets to
	// the parent cgroup. On error nothing is left behind.
	Create(ctx context.Context, c RuntimeContainer) (*Streams, error)
	// Start lets the init process run. Returns its pid on the host.
	Start(ctx context.Context, id string) (pid int, err error)
	// Attach opens the streams of a running container again, after a restart of
	// the daemon. It may be called once per container and daemon life.
	Attach(ctx context.Context, id string) (*Streams, error)
	// Kill sends a signal to the init process, or to every process if all.
	Kill(ctx context.Context, id string, signal int, all bool) error
	// Delete kills what is left of the process and removes the container with
	// its cgroup and bundle. The root file system stays until RemoveRootfs, so
	// that a stopped container can be started again (by Create) and copied from.
	// Deleting an unknown id is no error.
	Delete(ctx context.Context, id string) error
	// RemoveRootfs removes the writable layer. Unknown ids are no error.
	RemoveRootfs(ctx context.Context, id string) error

	// Exec starts a process in the container; it is gone once Exits reported it.
	Exec(ctx context.Context, id, execID string, p *specs.Process, stdin bool) (pid int, s *Streams, err error)
	// KillExec signals a process made by Exec.
	KillExec(ctx context.Context, id, execID string, signal int) error
	// Resize sets the size of a terminal; execID is empty for the init process.
	Resize(ctx context.Context, id, execID string, width, height uint32) error
	// CloseStdin tells the process that there is no more input.
	CloseStdin(ctx context.Context, id, execID string) error

	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	// Update changes resource limits of a running container.
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	// Pids lists the container's processes by their host pid.
	Pids(ctx context.Context, id string) ([]int, error)
	// Stats reads the cgroup once. Network counters are the engine's.
	Stats(ctx context.Context, id string) (*container.StatsResponse, error)
	// Mount gives a host path where the root file system can be read and
	// written, running or not; release undoes it.
	Mount(ctx context.Context, id string) (path string, release func() error, err error)
	// Changes lists what differs from the image.
	Changes(ctx context.Context, id string) ([]container.FilesystemChange, error)
	// Usage returns the bytes of the writable layer.
	Usage(ctx context.Context, id string) (int64, error)

	// List returns every container the runtime knows, at start, for adoption.
	List(ctx context.Context) ([]RuntimeState, error)
	// Exits delivers the end of every init and exec process, in order, at least
	// once. One reader. The channel is closed when ctx ends.
	Exits(ctx context.Context) (<-chan Exit, error)
	// OOMs delivers ids of containers in which the kernel killed for memory.
	OOMs(ctx context.Context) (<-chan string, error)
}

// RuntimeContainer is what Runtime.Create needs.
type RuntimeContainer struct {
	ID string
	// Image is Image.ID; empty means an empty root.
	Image string
	// Platform is the image variant, as "linux/amd64"; empty is the host's.
	Platform string
	Spec     *specs.Spec
	Stdin    bool // keep a pipe for standard input
	// ReuseRootfs keeps the writable layer of an earlier run of the same id.
	ReuseRootfs bool
	// SizeBytes limits the writable layer where the snapshotter can; 0: no limit.
	SizeBytes int64
}

// Streams are a process's standard streams. Stderr is nil with a terminal,
// Stdin nil when not asked for. The reader must keep reading: a full pipe
// blocks the process. Reads end with io.EOF after the process and all that
// inherited the stream are gone.
type Streams struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.ReadCloser
}

// Exit is the end of a process. ExecID is empty for the init process.
type Exit struct {
	ID, ExecID string
	Pid        int
	Code       int // 128+n when killed by signal n
	At         time.Time
	// Reason says why when it was not the process's doing, as when its shim
	// died; usually empty.
	Reason string
}

// RuntimeState is what is known of a container at start.
type RuntimeState struct {
	ID      string
	Pid     int
	Created bool // made but not started
	Running bool
	Paused  bool
	Code    int // when stopped
	At      time.Time
}
