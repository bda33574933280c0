package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lastWords bounds how much of a keeper's last words is quoted, in bytes.
const lastWords = 8 << 10

// process is a keeper's.
type process struct {
	pid  int
	file int // pidfd
}

// processOf is the one at the other end of a connection.
func processOf(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return &process{pid, fd}, nil
}

// end kills it, and returns when all that it had is given up.
func (p *process) end() error {
	defer unix.Close(p.file) //nolint:errcheck // nothing was written
	if err := unix.PidfdSendSignal(p.file, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end keeper %d: %w", p.pid, err)
	}
	return p.await(patience)
}

// await returns when it has ended.
func (p *process) await(most time.Duration) error {
	for end := time.Now().Add(most); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.file), Events: unix.POLLIN}}, int(time.Until(end).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("keeper %d does not end: %w", p.pid, errors.Join(err, os.ErrDeadlineExceeded))
		}
		return nil
	}
}

// spawn starts a keeper in a session of its own, with no more of the daemon's than a
// connection, and a file for what it says as it dies.
func (c *Client) spawn() (conn *net.UnixConn, p *process, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "daemon")
	defer theirs.Close() //nolint:errcheck // it is passed on
	nc, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, err
	}
	conn = nc.(*net.UnixConn)
	said, err := os.OpenFile(c.said(), os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	defer said.Close() //nolint:errcheck // it is passed on
	cmd := &exec.Cmd{
		Path: c.cfg.Command[0], Args: append([]string{"legion"}, append(c.cfg.Command[1:], c.cfg.Socket)...), Dir: "/", Env: []string{},
		ExtraFiles: []*os.File{theirs}, Stderr: said, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err = c.cfg.InHost(cmd.Start); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start the keeper: %w", err), conn.Close())
	}
	if p, err = processOf(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
	}
	go func() { _ = cmd.Wait() }() // how it ended is seen by its connection
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, p, nil
}

// said is the file for what a keeper says as it dies.
func (c *Client) said() string { return c.cfg.Socket + ".err" }

// lastSaid is the beginning of that, which of a stack says why.
func (c *Client) lastSaid() string {
	f, err := os.Open(c.said())
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, lastWords))
	if err != nil {
		return ""
	}
	return string(b)
}

// find connects to a keeper that an earlier daemon has started; nil if there is none.
func (c *Client) find() (*net.UnixConn, *process, error) {
	dir, name, err := reach(c.cfg.Socket)
	if err != nil {
		return nil, nil, nil //nolint:nilerr // no folder, no keeper
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: name})
	if err != nil {
		return nil, nil, nil //nolint:nilerr // it ends with its socket
	}
	who, err := credentials(conn)
	if err == nil {
		var p *process
		if p, err = processOf(int(who.Pid)); err == nil {
			return conn, p, nil
		}
	}
	return nil, nil, errors.Join(err, conn.Close())
}
