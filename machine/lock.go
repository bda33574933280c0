package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockPoll = 10 * time.Millisecond
	lockWait = 2 * time.Minute // longer than any one verb takes
)

// Lock takes the lock file at path, waiting while another command holds it,
// and writes into it what for. The file is removed by unlock.
func Lock(ctx context.Context, path, purpose string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		f, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if f != nil {
			_ = f.Truncate(0)
			_, _ = fmt.Fprintf(f, "%s (pid %d)", purpose, os.Getpid())
			return func() {
				_ = os.Remove(path)
				_ = f.Close()
			}, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			holder, _ := os.ReadFile(path)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fmt.Errorf("another command is still at work after %v: %s", lockWait, strings.TrimSpace(string(holder)))
			}
			return nil, context.Cause(ctx)
		}
	}
}

// tryLock returns nil when another has the lock, or had it and has removed the
// file since it was opened here.
func tryLock(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if os.IsNotExist(err) {
		return nil, nil // the folder was removed meanwhile
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	var mine, there unix.Stat_t
	if unix.Fstat(int(f.Fd()), &mine) != nil || unix.Stat(path, &there) != nil || mine.Ino != there.Ino {
		_ = f.Close()
		return nil, nil
	}
	return f, nil
}
