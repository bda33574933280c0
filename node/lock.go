package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// lockRoot takes the data root for this process, so that a second daemon
// cannot work on the same files. The kernel releases it when the process ends,
// however it ends; unlock does so earlier.
func lockRoot(root string) (unlock func(), err error) {
	name := filepath.Join(root, "daemon.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(name)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, api.Errorf(api.Conflict, "data root %s is in use by another daemon (pid %s): stop it, or start this one with another --data-root", root, strings.TrimSpace(string(holder)))
		}
		return nil, fmt.Errorf("lock data root %s: %w", root, err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock data root %s: %w", root, err)
	}
	return func() { _ = f.Close() }, nil
}
