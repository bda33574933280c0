package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// nsfsMagic is what statfs says of a bound namespace (NSFS_MAGIC).
const nsfsMagic = 0x6e736673

// onThread runs f on a thread of its own, which f may move to other network
// namespaces.
func (p *Plane) onThread(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- p.locked(f) }()
	return <-done
}

// locked runs f, which may move the thread to other network namespaces; the
// goroutine ends with it. The thread is put back in the process's namespace and used
// again; if that fails it ends with its goroutine, so that no other code ever runs
// in the wrong namespace, and no thread is lost otherwise.
func (p *Plane) locked(f func() error) error {
	runtime.LockOSThread()
	err := f()
	if back := unix.Setns(int(p.own.Fd()), unix.CLONE_NEWNET); back == nil {
		runtime.UnlockOSThread()
	}
	return err
}

// inHost runs f in the host's namespace.
func (p *Plane) inHost(f func() error) error {
	if p.same {
		return f()
	}
	return p.onThread(func() error {
		if err := unix.Setns(int(p.host.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the host's namespace: %w", err)
		}
		return f()
	})
}

// bindNamespace gives the thread's network namespace the name path.
func bindNamespace(path string) error {
	const flags, mode = unix.O_CREAT | unix.O_EXCL | unix.O_RDONLY | unix.O_CLOEXEC, 0o444
	fd, err := unix.Open(path, flags, mode)
	if errors.Is(err, unix.EEXIST) { // of one that is gone, or half-made
		if err := unbindNamespace(path); err != nil {
			return err
		}
		fd, err = unix.Open(path, flags, mode)
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	_ = unix.Close(fd)
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("bind a namespace to %s: %w", path, err)
	}
	return nil
}

// unbindNamespace takes the name away. The namespace, with the interfaces in
// it, goes when its last process does. A name that is not there is no error.
func unbindNamespace(path string) error {
	for bound(path) { // as often as it was bound
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", path, err)
	}
	return nil
}

// bound reports whether a namespace is bound to path: after a reboot, the file
// may be there without one.
func bound(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == nsfsMagic
}

// inNamespace moves the thread to the namespace that is bound to path.
func inNamespace(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}
