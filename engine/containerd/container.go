package containerd

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

type status uint8

const (
	creating status = iota
	created
	running
	paused
	stopped
)

// container is one container that has a bundle. Files in its folder:
// config.json, rootfs, shim (the shim's id, written before the shim is asked
// to create the container), stdin (present when it has one), the FIFOs 0, 1, 2.
type container struct {
	id, dir  string
	terminal bool
	io       fifos
	shim     *shim // nil: lost, or being created

	exited chan struct{} // closed when stopped

	mu       sync.Mutex
	status   status
	pid      int
	pidfd    int // -1: none
	code     int
	at       time.Time
	reason   string
	execs    map[string]*process
	pending  sync.WaitGroup // execs whose exit is not reported yet
	closing  bool           // the init process ended: no more execs
	attached bool
	deleting bool
}

// process is an exec.
type process struct {
	id    string
	pid   int
	pidfd int
	io    fifos
}

func newContainer(dir, id string) *container {
	return &container{
		id: id, dir: filepath.Join(dir, id), pidfd: -1,
		exited: make(chan struct{}), execs: make(map[string]*process),
	}
}

func (c *container) rootfs() string { return filepath.Join(c.dir, "rootfs") }

// openPidfd returns a descriptor of the process, so that a signal never
// reaches another process that got the same pid later.
func openPidfd(pid int) int {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

// signal sends to the process that has the pid, or the descriptor if any.
func signal(pid, pidfd, sig int) error {
	var err error
	if pidfd >= 0 {
		err = unix.PidfdSendSignal(pidfd, unix.Signal(sig), nil, 0)
	} else {
		err = unix.Kill(pid, unix.Signal(sig))
	}
	return err
}

// end records the end of the init process; false: it was recorded before.
func (c *container) end(code int, at time.Time, reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status == stopped {
		return false
	}
	c.status, c.code, c.at, c.reason = stopped, code, at, reason
	if c.pidfd >= 0 {
		_ = unix.Close(c.pidfd)
		c.pidfd = -1
	}
	close(c.exited)
	return true
}

func (c *container) state() engine.RuntimeState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return engine.RuntimeState{
		ID: c.id, Pid: c.pid,
		Created: c.status == created, Running: c.status == running || c.status == paused, Paused: c.status == paused,
		Code: c.code, At: c.at,
	}
}

// live returns the container's shim, or Conflict with the given words when it
// does not run.
func (c *container) live() (*shim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.shim == nil || c.status == stopped || c.status == creating {
		return nil, api.Errorf(api.Conflict, "container %s is not running", c.id)
	}
	return c.shim, nil
}

// validID keeps ids usable as file names.
func validID(id string) error {
	if id == "" || len(id) > 128 || filepath.Base(id) != id || id[0] == '.' {
		return api.Errorf(api.Invalid, "containerd: %q cannot be an id: letters, digits, - and _ only, at most 128", id)
	}
	return nil
}

func writeFile(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }
