package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ticksPerSecond is USER_HZ, 100 on every Linux that Go runs on.
const ticksPerSecond = 100

func discard(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) }

// processes are the peer's own: the daemon, its children, and the shims below
// its exec root, without the programs in containers.
func (p *peer) processes() ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(filepath.Base(e))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(e + "/cmdline")
		if err != nil { // gone meanwhile
			continue
		}
		exe, _ := os.Readlink(e + "/exe")
		if pid == p.cmd.Process.Pid || strings.HasPrefix(exe, p.dir+"/") || bytes.Contains(cmdline, []byte(p.dir+"/")) && !bytes.HasPrefix(cmdline, []byte("/web")) {
			pids = append(pids, pid)
		}
	}
	if !slices.Contains(pids, p.cmd.Process.Pid) {
		return nil, fmt.Errorf("the daemon %d is gone", p.cmd.Process.Pid)
	}
	return pids, nil
}

// pss is the proportional set size of the processes, in bytes.
func pss(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue // gone meanwhile
		}
		for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
			if f := strings.Fields(s.Text()); len(f) > 1 && f[0] == "Pss:" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				sum += kib * 1024
			}
		}
	}
	return sum, nil
}

// cpu is the time that the processes have used, in seconds.
func cpu(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, after, ok := strings.Cut(string(b), ") ")
		f := strings.Fields(after)
		if !ok || len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat: %q", pid, b)
		}
		for _, ticks := range f[11:13] { // utime, stime; proc(5)
			n, err := strconv.ParseFloat(ticks, 64)
			if err != nil {
				return 0, err
			}
			sum += n / ticksPerSecond
		}
	}
	return sum, nil
}

// cpuTime is what all processes of the machines have used, also those that have ended.
func (f *fleet) cpuTime() (sum time.Duration, err error) {
	for _, b := range f.boxes {
		used, err := b.cpuTime()
		if err != nil {
			return 0, fmt.Errorf("processor's time of %s: %w", b.name, err)
		}
		sum += used
	}
	return sum, nil
}

// cpuTime reads it from the machine's control group, of either version; its first
// process is in one of its own below.
func (b *box) cpuTime() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.init))
	if err != nil {
		return 0, err
	}
	unified := ""
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // cgroups(7)
		if len(f) < 3 {
			continue
		}
		group := strings.TrimSuffix(f[2], "/init")
		if slices.Contains(strings.Split(f[1], ","), "cpuacct") {
			return number(filepath.Join("/sys/fs/cgroup/cpuacct", group, "cpuacct.usage"), "", time.Nanosecond)
		}
		if f[1] == "" {
			unified = group
		}
	}
	return number(filepath.Join("/sys/fs/cgroup", unified, "cpu.stat"), "usage_usec ", time.Microsecond)
}

// number reads the one of a file that follows a name.
func number(path, name string, unit time.Duration) (time.Duration, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(text), name)
	first, _, _ := strings.Cut(after, "\n")
	n, err := strconv.ParseInt(first, 10, 64)
	return time.Duration(n) * unit, err
}
