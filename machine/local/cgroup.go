package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// initGroup is the cgroup inside the machine's, of version 2, that its init
// and daemon are in.
const initGroup = "init"

// makeGroups makes the machine's cgroup in every hierarchy.
func makeGroups(all []hierarchy, parent, name string) error {
	for _, h := range all {
		err := h.makeGroup(parent, name)
		for range 10 {
			if !errors.Is(err, fs.ErrNotExist) {
				break
			}
			err = h.makeGroup(parent, name) // the last other machine just took the parent with it
		}
		if err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

func (h hierarchy) makeGroup(parent, name string) error {
	dir := h.group(parent, name)
	for _, d := range []string{filepath.Dir(dir), dir} {
		if h.whole() {
			if err := delegate(filepath.Dir(d)); err != nil {
				return err
			}
		}
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := inheritCpuset(d); err != nil {
			return err
		}
	}
	return nil
}

// delegate hands every controller of a v2 cgroup to those below it.
func delegate(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	var failed []string
	var last error
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			failed, last = append(failed, c), err
		}
	}
	for _, c := range failed {
		if c == "memory" || c == "cpu" || c == "pids" {
			return fmt.Errorf("cgroup %s can't hand controller %s to machines (is this host a container whose processes are in that cgroup?): %w", dir, c, last)
		}
	}
	return nil
}

// inheritCpuset fills what a new cgroup of version 1 leaves empty, and without
// which no process may enter.
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another controller, or one that version 2 did not delegate
		}
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue // the other may be empty yet: somebody else is at it too
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(parent)) == "" {
			return fmt.Errorf("cgroup %s has no %s to pass on", filepath.Dir(dir), file)
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0); err != nil {
			return err
		}
	}
	return nil
}

// join moves a process to the cgroups.
func join(dirs []string, pid int) error {
	for _, d := range dirs {
		if err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return nil
}

// removeGroups removes the machine's cgroups with all below them, killing what
// is left inside.
func removeGroups(ctx context.Context, all []hierarchy, parent, name string) error {
	for _, h := range all {
		dir := h.group(parent, name)
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			killIn(dir)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return nil
}

// removeParents removes the common parents, with the last machine.
func removeParents(all []hierarchy, parent string) {
	for _, h := range all {
		_ = os.Remove(filepath.Join(h.Dir, parent)) // unless a machine is in it
	}
}

func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// killIn kills every process in the cgroup and below, except this one.
func killIn(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil //nolint:nilerr // it vanished, which is what is wanted
		}
		b, _ := os.ReadFile(path)
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil && pid > 1 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
}

// ownGroups returns where this process is, in each hierarchy.
func ownGroups(all []hierarchy) ([]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return groupsIn(string(b), all), nil
}

// groupsIn reads the format of cgroups(7), /proc/PID/cgroup.
func groupsIn(text string, all []hierarchy) []string {
	var dirs []string
	for _, h := range all {
		for line := range strings.Lines(text) {
			f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
			if len(f) == 3 && (h.Unified && f[0] == "0" && f[1] == "" || !h.Unified && f[1] == strings.Join(h.Options, ",")) {
				dirs = append(dirs, filepath.Join(h.Dir, f[2]))
			}
		}
	}
	return dirs
}
