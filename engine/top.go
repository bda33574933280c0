package engine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

const ticksPerSecond = 100 // USER_HZ, part of the kernel's interface

// ContainerTop lists a container's processes. The columns are those of ps with
// the arguments, where the host has ps; without arguments, of "ps -ef".
func (e *Engine) ContainerTop(ctx context.Context, name, psArgs string) (*container.TopResponse, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	if _, err := c.running(); err != nil {
		return nil, err
	}
	if c.snapshot().Restarting {
		return nil, api.Errorf(api.Conflict, "Container %s is restarting, wait until the container is running", name)
	}
	pids, err := e.cfg.Runtime.Pids(ctx, c.id)
	if err != nil {
		return nil, err
	}
	slices.Sort(pids)
	c.event("top", nil)
	if psArgs == "" || psArgs == "-ef" {
		return listProcesses(pids, e.cfg.Now())
	}
	if strings.ContainsAny(psArgs, "\x00\n") {
		return nil, api.Errorf(api.Invalid, "ps arguments have characters that can't be in them")
	}
	ps, err := exec.LookPath("ps")
	if err != nil {
		return nil, api.Errorf(api.Invalid, "top with arguments needs the program ps on this node: install procps, or leave the arguments out")
	}
	out, err := exec.CommandContext(ctx, ps, strings.Fields(psArgs)...).Output()
	if err != nil {
		return nil, api.Errorf(api.Invalid, "ps %s: %w: %s", psArgs, err, strings.TrimSpace(stderrOf(err)))
	}
	return parsePs(string(out), pids)
}

func stderrOf(err error) string {
	if x, ok := err.(*exec.ExitError); ok { //nolint:errorlint // straight from Output
		return string(x.Stderr)
	}
	return ""
}

// parsePs keeps the lines of ps's output that are of the processes.
func parsePs(out string, pids []int) (*container.TopResponse, error) {
	lines := strings.Split(strings.TrimRight(out, "\n"), "\n")
	titles := strings.Fields(lines[0])
	at := slices.Index(titles, "PID")
	if at < 0 {
		return nil, api.Errorf(api.Invalid, "Couldn't find PID field in ps output")
	}
	r := &container.TopResponse{Titles: titles, Processes: [][]string{}}
	for _, line := range lines[1:] {
		f := strings.Fields(line)
		if len(f) <= at {
			continue
		}
		pid, err := strconv.Atoi(f[at])
		if err != nil || !slices.Contains(pids, pid) {
			continue
		}
		if n := len(titles); len(f) > n {
			f = append(f[:n-1:n-1], strings.Join(f[n-1:], " "))
		}
		r.Processes = append(r.Processes, f)
	}
	return r, nil
}

// listProcesses is "ps -ef" for some processes.
func listProcesses(pids []int, now time.Time) (*container.TopResponse, error) {
	r := &container.TopResponse{Titles: []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}, Processes: [][]string{}}
	boot, err := bootTime()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		if p, ok := describeProcess(pid, boot, now); ok {
			r.Processes = append(r.Processes, p)
		}
	}
	return r, nil
}

// describeProcess reads /proc, proc(5); false when the process is gone.
func describeProcess(pid int, boot, now time.Time) ([]string, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return nil, false
	}
	text := string(stat)
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return nil, false
	}
	comm := text[open+1 : end]
	f := strings.Fields(text[end+1:])
	if len(f) < 20 {
		return nil, false
	}
	n := func(i int) int64 {
		v, _ := strconv.ParseInt(f[i], 10, 64)
		return v
	}
	cpu := time.Duration(n(11)+n(12)) * time.Second / ticksPerSecond
	started := boot.Add(time.Duration(n(19)) * time.Second / ticksPerSecond)
	use := int64(0)
	if age := now.Sub(started); age > 0 {
		use = int64(cpu * 100 / age)
	}
	cmd := comm
	if b, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && len(b) > 0 {
		cmd = strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " ")
	} else {
		cmd = "[" + comm + "]"
	}
	stime := started.Local().Format("15:04")
	if now.Sub(started) > 24*time.Hour {
		stime = started.Local().Format("Jan02")
	}
	sec := int64(cpu.Seconds())
	return []string{
		ownerName(dir), strconv.Itoa(pid), f[1], strconv.FormatInt(use, 10), stime, ttyName(n(4)),
		fmt.Sprintf("%02d:%02d:%02d", sec/3600, sec/60%60, sec%60), cmd,
	}, true
}

func ttyName(nr int64) string {
	major, minor := nr>>8&0xfff, nr&0xff|nr>>12&0xfff00
	switch {
	case nr == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.FormatInt((major-136)<<8|minor, 10)
	case major == 4:
		return "tty" + strconv.FormatInt(minor, 10)
	}
	return "?"
}

func ownerName(dir string) string {
	info, err := os.Stat(dir)
	if err != nil {
		return "?"
	}
	uid, _ := owner(info)
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func bootTime() (time.Time, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, api.Errorf(api.Internal, "/proc/stat tells no time of boot")
}
