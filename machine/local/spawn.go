package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitCommand is the first argument with which this program is a machine's
// init: main hands over to Init then.
const InitCommand = "machine-init"

// Descriptors that an init is born with.
const (
	planFD   = 3 // the plan, once the machine's network is there
	statusFD = 4 // what went wrong before the daemon could be started
	binaryFD = 5 // this program; opened by the init itself, since a mount can't cross namespaces
)

// spawned is an init that waits for its plan.
type spawned struct {
	process process
	plan    *os.File
	status  *os.File
}

// spawn starts an init in namespaces and cgroups of its own. It is no child
// that anybody waits for: it outlives this process.
func spawn(name, log string, groups []string) (s *spawned, err error) {
	planR, planW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = planR.Close() }()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, planW.Close())
	}
	defer func() { _ = statusW.Close() }()
	defer func() {
		if err != nil {
			err = errors.Join(err, planW.Close(), statusR.Close())
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(self)
	cmd.Args = []string{"legion", InitCommand, name}
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{planR, statusW}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie if it ends before this process
	p, err := identify(cmd.Process.Pid)
	if err == nil {
		err = join(groups, cmd.Process.Pid)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		return nil, err
	}
	return &spawned{process: p, plan: planW, status: statusR}, nil
}

// close lets go of the init; one that has no plan yet ends.
func (s *spawned) close() {
	_ = s.plan.Close()
	_ = s.status.Close()
}

// follow gives the init its plan and returns once it has set itself up.
func (s *spawned) follow(p plan) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if _, err := s.plan.Write(b); err != nil {
		return fmt.Errorf("tell the machine's init its plan: %w", err)
	}
	if err := s.plan.Close(); err != nil {
		return err
	}
	said, err := io.ReadAll(io.LimitReader(s.status, 64<<10))
	if err != nil {
		return fmt.Errorf("hear the machine's init: %w", err)
	}
	if text := strings.TrimSpace(string(said)); text != "" {
		return errors.New(text)
	}
	return nil
}
