// Package monitor has the Go runtime's monitor thread (sysmon) wake up less often.
// That thread takes processors back from goroutines that are long in a system
// call. It looks every 20 µs (70 with Linux's usual slack of timers) while anything
// runs at all, and a daemon that answers a request, waits for its disk, and then for
// other managers, begins to run some thousand times a second. A quarter of the
// processor time of a swarm's small writes went into looking and what came of it.
//
// The runtime has no setting for it. But Linux lets a sleep of a thread last longer
// by the thread's timer slack, and that can be set for one thread.
package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Relax lets the sleeps of this process's monitor be longer by slack. While a
// goroutine is in a long system call, others may wait twice as long for its
// processor, if no other is free. When it has found nothing for a while, the runtime
// itself looks each 10 ms. To be called once, in a process that lives long. It
// needs CAP_SYS_NICE; an error does no harm.
func Relax(slack time.Duration) error {
	thread, err := find()
	if err == nil {
		err = os.WriteFile(slackOf(thread), strconv.AppendInt(nil, slack.Nanoseconds(), 10), 0)
	}
	if err != nil {
		return fmt.Errorf("the runtime's monitor thread: %w", err)
	}
	return nil
}

// find returns the id of the monitor thread. It is the first that the runtime makes
// after the process's own (runtime.main, since Go 1.1), it never ends, and the
// kernel lists threads in the order in which they were made. To take another one for
// it would do no harm either: only sleeps get longer.
func find() (int, error) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	names, err := dir.Readdirnames(2)
	if err != nil {
		return 0, err
	}
	if len(names) < 2 || names[0] != strconv.Itoa(os.Getpid()) {
		return 0, errors.New("not where it is expected")
	}
	return strconv.Atoi(names[1])
}

func slackOf(thread int) string {
	return filepath.Join("/proc", strconv.Itoa(thread), "timerslack_ns")
}
