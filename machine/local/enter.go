package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// entrance starts processes inside machines.
type entrance struct {
	mu sync.Mutex // held while this process is in a machine's cgroups
}

// namespaces in the order in which they are entered; with the mounts, /proc is
// the machine's.
func namespaces() []struct {
	file string
	flag int
} {
	return []struct {
		file string
		flag int
	}{
		{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS},
		{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
}

// run starts a command inside the machine whose init is pid, and returns its
// exit status. groups are the machine's cgroups, home those of this process.
func (e *entrance) run(ctx context.Context, pid int, groups, home []string, command func() *exec.Cmd) (int, error) {
	type started struct {
		cmd *exec.Cmd
		err error
	}
	done := make(chan started)
	go func() { // its thread ends with it, unusable for anything else
		cmd, err := e.start(pid, groups, home, command)
		done <- started{cmd, err}
	}()
	s := <-done
	if s.err != nil {
		return 0, s.err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			return 128 + int(w.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

func (e *entrance) start(pid int, groups, home []string, command func() *exec.Cmd) (*exec.Cmd, error) {
	runtime.LockOSThread()
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, n := range namespaces() {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, n.file))
		if err != nil {
			return nil, fmt.Errorf("enter the machine: %w", err)
		}
		files = append(files, f)
	}
	// A child is born where its parent is; so this process visits, since a thread
	// alone can't in every version of cgroups.
	e.mu.Lock()
	defer e.mu.Unlock()
	back, err := openProcs(home)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range back {
			_, _ = f.WriteString(strconv.Itoa(os.Getpid()))
			_ = f.Close()
		}
	}()
	if err := join(groups, os.Getpid()); err != nil {
		return nil, err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("enter the machine: %w", err)
	}
	for i, n := range namespaces() {
		if err := unix.Setns(int(files[i].Fd()), n.flag); err != nil {
			return nil, fmt.Errorf("enter the machine's %s namespace: %w", n.file, err)
		}
	}
	cmd := command()
	return cmd, cmd.Start()
}

// openProcs opens the files by which a process enters the cgroups: their paths
// mean something else inside a machine, and so do process ids.
func openProcs(groups []string) ([]*os.File, error) {
	var files []*os.File
	for _, g := range groups {
		f, err := os.OpenFile(filepath.Join(g, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}
