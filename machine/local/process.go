package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
	"golang.org/x/sys/unix"
)

// process names a machine's init for good: a process id alone may be somebody
// else's later, or after a reboot.
type process struct {
	PID   int
	Start uint64 // clock ticks after boot
	Boot  string // the boot's id
}

func identify(pid int) (process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return process{pid, start, strings.TrimSpace(string(boot))}, err
}

// alive reports whether the process runs. A zombie init does not: all others in
// its pid namespace are gone then.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := identify(p.PID)
	if err != nil || now != p {
		return false
	}
	_, state, err := readStat(p.PID)
	return err == nil && state != 'Z' && state != 'X'
}

// readStat reads start time and state from /proc/PID/stat (proc(5)).
func readStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	const startField = 19 // counted from the state, which follows the name
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) <= startField {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	start, err = strconv.ParseUint(f[startField], 10, 64)
	return start, f[0][0], err
}

func loadProcess(path string) (process, error) {
	var p process
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func (p process) save(path string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return atomicwriter.WriteFile(path, b, 0o644)
}

func (p process) signal(s unix.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := unix.Kill(p.PID, s); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// gone waits until the process and all in its pid namespace have ended.
func (p process) gone(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for p.alive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("process %d does not end: %w", p.PID, ctx.Err())
		}
	}
	return nil
}
