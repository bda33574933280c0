package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/legion-swarm/legion/machine"
)

// Run runs a command in the machine, as root, with the environment that the
// machine's daemon has.
func (d *Driver) Run(ctx context.Context, m *machine.Machine, c machine.Command) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("driver local needs root to enter a machine")
	}
	p, err := loadProcess(m.Path(processFile))
	if err != nil {
		return 0, err
	}
	if !p.alive() {
		return 0, fmt.Errorf("machine %q is not running (start it: legion machine start %s)", m.Name, m.Name)
	}
	host, err := readFacts()
	if err != nil {
		return 0, err
	}
	home, err := ownGroups(host.hierarchies)
	if err != nil {
		return 0, err
	}
	return d.enter.run(ctx, p.PID, d.leavesOf(host, m.Name), home, func() *exec.Cmd { return shell(m, host, c) })
}

// shell is called inside the machine.
func shell(m *machine.Machine, f facts, c machine.Command) *exec.Cmd {
	sh, args := "/bin/sh", []string{"-c", c.Line}
	if c.Line == "" {
		args = nil // no login shell: that would forget PATH
		if _, err := os.Stat("/bin/bash"); err == nil {
			sh = "/bin/bash"
		}
	}
	cmd := exec.Command(sh, args...)
	cmd.Dir, cmd.Env = "/", environment(m, f)
	if _, err := os.Stat("/root"); err == nil {
		cmd.Dir = "/root"
	}
	for _, v := range []string{"TERM", "COLORTERM"} {
		if s := os.Getenv(v); s != "" {
			cmd.Env = append(cmd.Env, v+"="+s)
		}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	return cmd
}

func (d *Driver) groupsOf(f facts, name string) []string {
	var dirs []string
	for _, h := range f.hierarchies {
		dirs = append(dirs, h.group(d.groups, name))
	}
	return dirs
}

// leavesOf are the cgroups in which processes of the machine may be.
func (d *Driver) leavesOf(f facts, name string) []string {
	var dirs []string
	for _, h := range f.hierarchies {
		g := h.group(d.groups, name)
		if h.Unified {
			g = filepath.Join(g, initGroup)
		}
		dirs = append(dirs, g)
	}
	return dirs
}

// Disconnect cuts it from those machines, or from everything.
func (d *Driver) Disconnect(ctx context.Context, m *machine.Machine, from []string) error {
	return d.recut(ctx, m, from, func(f *fabricState) error {
		f.Cuts = disconnect(f.Cuts, m.Name, from)
		return nil
	})
}

// Connect heals the cuts between it and those machines, or all.
func (d *Driver) Connect(ctx context.Context, m *machine.Machine, to []string) error {
	return d.recut(ctx, m, to, func(f *fabricState) (err error) {
		f.Cuts, err = connect(f.Cuts, m.Name, to)
		return err
	})
}

// Cuts are the machines that it is cut from; everything: from all.
func (d *Driver) Cuts(m *machine.Machine) (from []string, everything bool, err error) {
	f, err := d.fabric.load()
	if err != nil {
		return nil, false, err
	}
	from, everything = cutsOf(f.Cuts, m.Name)
	return from, everything, nil
}

func (d *Driver) recut(ctx context.Context, m *machine.Machine, others []string, change func(*fabricState) error) error {
	if os.Geteuid() != 0 {
		return errors.New("driver local needs root to cut a network")
	}
	return d.fabric.update(ctx, "cut "+m.Name, func(f *fabricState) error {
		for _, o := range append([]string{m.Name}, others...) {
			if _, ok := f.Hosts[o]; !ok {
				return fmt.Errorf("machine %q is not on this fabric", o)
			}
		}
		if slices.Contains(others, m.Name) {
			return errors.New("a machine can't be cut from itself")
		}
		if err := change(f); err != nil {
			return err
		}
		return d.fabric.apply(*f)
	})
}
