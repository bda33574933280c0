package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// superviseArg tells an init that it has been set up.
const superviseArg = "supervise"

// maxOpenFiles is what a service manager would let the daemon have.
const maxOpenFiles = 1 << 20

// Init is what process 1 of a machine does, with the arguments after
// InitCommand. It returns the exit status; in a machine that is set up, never
// before the machine is shut down.
func Init(args []string) int {
	if os.Getpid() != 1 {
		_, _ = fmt.Fprintln(os.Stderr, "legion machine-init is for legion machine only")
		return 1
	}
	if len(args) == 2 && args[1] == superviseArg {
		if err := superviseMachine(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "legion machine-init:", err)
			return 1
		}
		return 0
	}
	status := os.NewFile(statusFD, "status")
	unix.CloseOnExec(statusFD)
	if err := setUp(); err != nil {
		_, _ = fmt.Fprintln(status, err)
	}
	return 1
}

// setUp makes the machine as the plan says and goes on as its supervisor, in
// the same process: the cgroup namespace is the thread's until then.
func setUp() error {
	runtime.LockOSThread()
	b, err := io.ReadAll(os.NewFile(planFD, "plan"))
	if err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	if len(b) == 0 {
		return errors.New("whoever began to make this machine is gone")
	}
	var p plan
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	if err := openBinary(); err != nil {
		return err
	}
	if err := forgetMounts(); err != nil {
		return err
	}
	for _, m := range p.Mounts {
		if err := m.make(); err != nil {
			return err
		}
	}
	for _, l := range p.Links {
		if err := os.Symlink(l[1], l[0]); err != nil {
			return err
		}
	}
	if p.Unified != "" {
		if err := leaveRoot(p.Unified); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(p.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	raiseLimits()
	if err := os.WriteFile(insidePlan, b, 0o600); err != nil {
		return err
	}
	unix.Umask(0o022)
	unix.CloseOnExec(planFD)
	if err := unix.Exec(insideBinary, []string{"legion", InitCommand, p.Hostname, superviseArg}, p.Env); err != nil {
		return fmt.Errorf("go on as %s: %w", insideBinary, err)
	}
	return nil
}

// forgetMounts lets go of mounts of the host's that the machine would only hold:
// those that its own will hide, and others' namespaces.
func forgetMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate the mounts from the host's: %w", err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, m := range slices.Backward(mounts) {
		if hidden(m.Mountpoint, m.FSType) {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH) // at worst it is held
		}
	}
	return nil
}

func hidden(path, kind string) bool {
	for _, d := range []string{"/run", "/tmp", "/sys/fs/cgroup"} {
		if path == d || strings.HasPrefix(path, d+"/") {
			return true
		}
	}
	return kind == "nsfs"
}

// openBinary opens this program, whose path may soon be hidden.
func openBinary() error {
	fd, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open this program: %w", err)
	}
	if fd == binaryFD {
		return nil
	}
	return unix.Dup3(fd, binaryFD, unix.O_CLOEXEC)
}

func (m mount) make() error {
	err := m.try()
	if err != nil && m.Optional {
		return nil
	}
	return err
}

func (m mount) try() error {
	target := m.Target
	if m.Dir {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	if m.Flags&unix.MS_BIND != 0 {
		var err error
		if target, err = bindTarget(target); err != nil {
			return err
		}
	}
	if err := unix.Mount(m.Source, target, m.Type, m.Flags, m.Data); err != nil {
		return fmt.Errorf("mount %s on %s (%s): %w", m.Source, m.Target, m.Data, err)
	}
	return nil
}

// bindTarget makes a missing target that is the machine's own, perhaps behind a
// link: a host's /etc/resolv.conf often points into /run.
func bindTarget(path string) (string, error) {
	if to, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(path, "/run/") {
		return path, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, nil, 0o644)
}

// leaveRoot moves this process out of the machine's root cgroup of version 2
// and hands its controllers down: a cgroup can't have both processes and
// controllers for those below it.
func leaveRoot(dir string) error {
	leaf := filepath.Join(dir, initGroup)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := join([]string{leaf}, os.Getpid()); err != nil {
		return err
	}
	if dir != cgroupRoot {
		return nil // version 1 has the controllers that matter
	}
	return delegate(dir)
}

func raiseLimits() {
	for max := uint64(maxOpenFiles); max >= 1024; max /= 2 {
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: max, Max: max}) == nil {
			break
		}
	}
	const processes = 6 // RLIMIT_NPROC, which package syscall does not name
	infinity := ^uint64(0)
	_ = syscall.Setrlimit(processes, &syscall.Rlimit{Cur: infinity, Max: infinity})
}
