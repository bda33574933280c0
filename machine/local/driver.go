package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/machine"
)

// Name of the driver.
const Name = "local"

const (
	startTimeout = 60 * time.Second
	killTimeout  = 30 * time.Second
)

// Options are those of create.
type Options struct {
	// Bare: without a daemon, for trying other things.
	Bare bool `json:",omitempty"`
}

// Driver makes machines on this computer. It needs root.
type Driver struct {
	fabric fabric
	groups string // the parent of machines' cgroups
	enter  *entrance
}

var (
	_ machine.Driver = (*Driver)(nil)
	_ machine.Cutter = (*Driver)(nil)
)

// New returns the driver for the machines of one storage folder. It touches
// nothing.
func New(storage string) *Driver {
	mark := ""
	if storage = filepath.Clean(storage); storage != machine.DefaultStorageDir {
		sum := sha256.Sum256([]byte(storage))
		mark = "-" + hex.EncodeToString(sum[:4])
	}
	d := &Driver{groups: "legion-machine" + mark, enter: &entrance{}, fabric: fabric{
		dir: filepath.Join(storage, "fabric"), pin: "/run/legion-machine" + mark + "/fabric",
		link: "legion-fabric", table: "legion_machine" + strings.ReplaceAll(mark, "-", "_"),
	}}
	if mark != "" {
		d.fabric.link = "lfabric" + mark[1:]
	}
	return d
}

// Prepare gives the machine its address.
func (d *Driver) Prepare(ctx context.Context, m *machine.Machine) error {
	if os.Geteuid() != 0 {
		return errors.New("driver local needs root: it makes namespaces, cgroups and network devices")
	}
	if bad := validateDir(m.Dir); bad != "" {
		return errors.New(bad)
	}
	return d.fabric.update(ctx, "create "+m.Name, func(f *fabricState) error {
		if err := f.choose(); err != nil {
			return err
		}
		a, err := allocate(f.Subnet, f.Hosts)
		if err == nil {
			f.Hosts[m.Name] = a
		}
		return err
	})
}

// Create makes the machine and starts it.
func (d *Driver) Create(ctx context.Context, m *machine.Machine) error {
	for _, dir := range []string{dataDir, tmpDir} {
		if err := os.Mkdir(m.Path(dir), 0o711); err != nil {
			return err
		}
	}
	if err := os.WriteFile(m.Path(configFile), []byte("{}\n"), 0o600); err != nil {
		return err
	}
	return d.start(ctx, m)
}

// Start starts it.
func (d *Driver) Start(ctx context.Context, m *machine.Machine) error {
	if os.Geteuid() != 0 {
		return errors.New("driver local needs root: it makes namespaces, cgroups and network devices")
	}
	return d.start(ctx, m)
}

func (d *Driver) start(ctx context.Context, m *machine.Machine) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	host, err := readFacts()
	if err != nil {
		return err
	}
	bare, err := isBare(m)
	if err != nil {
		return err
	}
	if err := prepareFiles(m, host); err != nil {
		return err
	}
	if err := makeGroups(host.hierarchies, d.groups, m.Name); err != nil {
		return err
	}
	s, err := spawn(m.Name, m.Path(logFile), d.groupsOf(host, m.Name))
	if err != nil {
		return err
	}
	defer s.close()
	defer func() {
		if err != nil {
			err = errors.Join(err, d.end(context.WithoutCancel(ctx), s.process))
		}
	}()
	if err := s.process.save(m.Path(processFile)); err != nil {
		return err
	}
	var p plan
	err = d.fabric.update(ctx, "start "+m.Name, func(f *fabricState) error {
		if err := d.fabric.ensure(f); err != nil {
			return err
		}
		p = planFor(m, host, filepath.Join(d.fabric.dir, hostsFile), fmt.Sprintf("/proc/self/fd/%d", binaryFD))
		if bare {
			p.Daemon = nil
		}
		return d.fabric.attach(*f, m.Name, s.process.PID)
	})
	if err != nil {
		return err
	}
	if err := s.follow(p); err != nil {
		return err
	}
	return d.await(ctx, m, s.process)
}

// prepareFiles writes what the machine reads, and empties what does not last.
func prepareFiles(m *machine.Machine, f facts) error {
	for _, file := range []string{endedFile, socketFile} {
		if err := os.RemoveAll(m.Path(file)); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(m.Path(tmpDir)); err != nil {
		return err
	}
	return errors.Join(
		os.Mkdir(m.Path(tmpDir), 0o777), os.Chmod(m.Path(tmpDir), 0o777|os.ModeSticky),
		os.WriteFile(m.Path(nameFile), []byte(m.Name+"\n"), 0o644),
		os.WriteFile(m.Path(resolvFile), f.resolv, 0o644),
	)
}

// await waits until the daemon answers, or ends.
func (d *Driver) await(ctx context.Context, m *machine.Machine, p process) error {
	e, err := d.Endpoint(m)
	if err != nil {
		return err
	}
	if e.URL == "" {
		return nil
	}
	err = machine.Await(ctx, e, func() error {
		if b, err := os.ReadFile(m.Path(endedFile)); err == nil {
			return errors.New(strings.TrimSpace(string(b)))
		}
		if !p.alive() {
			return errors.New("the machine's init ended")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%w; its log says:\n%s", err, tail(m.Path(logFile)))
	}
	return nil
}

// tail is the end of a file.
func tail(path string) string {
	const lines, size = 5, 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		_, _ = f.Seek(-size, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, size))
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// Stop shuts the machine down: its daemon, then all its processes.
func (d *Driver) Stop(ctx context.Context, m *machine.Machine) error {
	p, err := loadProcess(m.Path(processFile))
	if err != nil {
		return err
	}
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownTime)
	defer cancel()
	if p.gone(ctx) == nil {
		return nil
	}
	m.Say("does not end in order; cutting its power")
	return d.Kill(context.WithoutCancel(ctx), m)
}

// Kill ends everything in it at once.
func (d *Driver) Kill(ctx context.Context, m *machine.Machine) error {
	p, err := loadProcess(m.Path(processFile))
	if err != nil {
		return err
	}
	return d.end(ctx, p)
}

func (d *Driver) end(ctx context.Context, p process) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.gone(ctx)
}

// Remove removes all of it that is not in its folder.
func (d *Driver) Remove(ctx context.Context, m *machine.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := d.Kill(ctx, m); err != nil {
		return err
	}
	host, err := readFacts()
	if err != nil {
		return err
	}
	if err := removeGroups(ctx, host.hierarchies, d.groups, m.Name); err != nil {
		return err
	}
	return d.fabric.update(ctx, "rm "+m.Name, func(f *fabricState) error {
		a, ok := f.Hosts[m.Name]
		if !ok {
			return nil
		}
		if err := d.fabric.detach(a); err != nil {
			return err
		}
		delete(f.Hosts, m.Name)
		f.Cuts = slices.DeleteFunc(f.Cuts, func(c cut) bool { return c.concerns(m.Name) })
		return d.fabric.apply(*f)
	})
}

// State looks for the machine's init.
func (d *Driver) State(_ context.Context, m *machine.Machine) (machine.State, error) {
	p, err := loadProcess(m.Path(processFile))
	if err != nil {
		return machine.StateError, err
	}
	if p.alive() {
		return machine.StateRunning, nil
	}
	return machine.StateStopped, nil
}

// Address is the machine's on the fabric.
func (d *Driver) Address(m *machine.Machine) (string, error) {
	f, err := d.fabric.load()
	if err != nil {
		return "", err
	}
	a, ok := f.Hosts[m.Name]
	if !ok {
		return "", fmt.Errorf("machine %q has no address yet", m.Name)
	}
	return a.String(), nil
}

func isBare(m *machine.Machine) (bool, error) {
	var o Options
	err := m.DecodeOptions(&o)
	return o.Bare, err
}

// Endpoint is a socket in the machine's folder.
func (d *Driver) Endpoint(m *machine.Machine) (machine.Endpoint, error) {
	bare, err := isBare(m)
	if err != nil || bare {
		return machine.Endpoint{}, err
	}
	return machine.Endpoint{URL: "unix://" + m.Path(socketFile)}, nil
}

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
		args = []string{"-l"}
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
