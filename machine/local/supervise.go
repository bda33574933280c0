package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A daemon that ends by itself is started again, later each time; one that
	// ran this long begins anew.
	firstPause = 100 * time.Millisecond
	maxPause   = 10 * time.Second
	healthy    = time.Minute
	// daemonGrace and processGrace bound an orderly shutdown; ShutdownTime is
	// more than both.
	daemonGrace  = 15 * time.Second
	processGrace = 10 * time.Second
	shutdownTime = 40 * time.Second
)

// supervisor keeps the daemon running, and reaps what the machine's processes
// leave. One goroutine does all of it, so no child is waited for twice.
type supervisor struct {
	plan   plan
	log    *os.File // what becomes of it goes to the log
	signal chan os.Signal

	daemon  int // 0: none runs
	started time.Time
	pause   time.Duration
}

// superviseMachine runs until the machine is shut down: SIGTERM.
func superviseMachine() error {
	b, err := os.ReadFile(insidePlan)
	if err != nil {
		return err
	}
	s := &supervisor{signal: make(chan os.Signal, 16), pause: firstPause}
	if err := json.Unmarshal(b, &s.plan); err != nil {
		return err
	}
	// This process does next to nothing, and there is one for each machine.
	debug.SetGCPercent(10)
	debug.FreeOSMemory()
	out, err := newLog(s.plan.Log)
	if err != nil {
		return err
	}
	s.log = out
	signal.Notify(s.signal, unix.SIGCHLD, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	return s.run()
}

func (s *supervisor) run() error {
	again := time.NewTimer(0)
	defer again.Stop()
	if len(s.plan.Daemon) == 0 {
		again.Stop()
	}
	for {
		select {
		case <-again.C:
			if err := s.start(); err != nil {
				s.ended(fmt.Sprintf("could not be started: %v", err))
				again.Reset(s.backOff())
			}
		case sig := <-s.signal:
			if sig != unix.SIGCHLD {
				s.shutDown()
				return nil
			}
			if s.reap() {
				again.Reset(s.backOff())
			}
		}
	}
}

func (s *supervisor) start() error {
	pid, err := syscall.ForkExec(s.plan.Daemon[0], append([]string{"legion"}, s.plan.Daemon[1:]...), &syscall.ProcAttr{
		Dir: "/", Env: s.plan.Env, Files: []uintptr{0, s.log.Fd(), s.log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	s.daemon, s.started = pid, time.Now()
	return nil
}

// reap waits for all children that have ended; true: the daemon was one.
func (s *supervisor) reap() (daemon bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return daemon
		}
		if pid == s.daemon {
			s.daemon, daemon = 0, true
			s.ended(describe(status))
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return "was killed by " + unix.SignalName(s.Signal())
	}
	return "ended with status " + strconv.Itoa(s.ExitStatus())
}

// ended notes how the daemon ended, for whoever waits for it to answer.
func (s *supervisor) ended(how string) {
	_, _ = fmt.Fprintf(s.log, "machine: the daemon %s\n", how)
	_ = os.WriteFile(s.plan.Ended, []byte("the daemon "+how+"\n"), 0o644)
}

func (s *supervisor) backOff() time.Duration {
	if !s.started.IsZero() && time.Since(s.started) > healthy {
		s.pause = firstPause
	}
	p := s.pause
	s.pause = min(2*s.pause, maxPause)
	return p
}

// shutDown ends the daemon, then all else as far as it heeds SIGTERM. The
// kernel ends the rest with this process.
func (s *supervisor) shutDown() {
	if s.daemon != 0 {
		_ = unix.Kill(s.daemon, unix.SIGTERM)
	}
	s.reapUntil(daemonGrace, func() bool { return s.daemon == 0 })
	_ = unix.Kill(-1, unix.SIGTERM)
	s.reapUntil(processGrace, alone)
	unix.Sync()
}

// reapUntil reaps until the condition holds, at most that long.
func (s *supervisor) reapUntil(most time.Duration, done func() bool) {
	deadline := time.NewTimer(most)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.reap(); !done(); s.reap() {
		select {
		case <-s.signal:
		case <-tick.C:
		case <-deadline.C:
			return
		}
	}
}

// alone reports whether nothing is left to wait for. Shims have nothing to do
// once their containers have ended, and are in no hurry.
func alone() bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return true
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 {
			continue
		}
		comm, err := os.ReadFile("/proc/" + e.Name() + "/comm")
		if err == nil && !strings.HasPrefix(string(comm), "containerd-shim") {
			return false
		}
	}
	return true
}
