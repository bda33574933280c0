package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/atomicwriter"
)

// writePidfile writes this process's id, unless the file names a daemon that
// is alive. The data root's lock, not this file, keeps two daemons apart: this
// is for people and scripts.
func writePidfile(name string) (remove func(), err error) {
	if pid := readPid(name); pid != 0 && pid != os.Getpid() && isDaemon(pid) {
		return nil, fmt.Errorf("process with PID %d is still running", pid)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	if err := atomicwriter.WriteFile(name, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return nil, err
	}
	return func() {
		if readPid(name) == os.Getpid() {
			_ = os.Remove(name)
		}
	}, nil
}

// readPid returns 0 for a file that is missing or is no pid file.
func readPid(name string) int {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// isDaemon reports whether the process is alive and a legion daemon; after a
// reboot or kill -9 the number may be anybody's.
func isDaemon(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return false
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if errors.Is(err, fs.ErrNotExist) || len(args) == 0 { // gone, or a zombie
		return false
	}
	return err != nil || bytes.Contains(args, []byte("\x00"+daemonName+"\x00"))
}
