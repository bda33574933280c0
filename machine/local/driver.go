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
	real, err := filepath.EvalSymlinks(m.Dir)
	if err != nil {
		return err
	}
	for _, dir := range []string{m.Dir, real} {
		if bad := validateDir(dir); bad != "" {
			return errors.New(bad)
		}
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
	// Anew: in a used one of version 2, whose controllers are handed down, no
	// process may be.
	if err := removeGroups(ctx, host.hierarchies, d.groups, m.Name); err != nil {
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
	if errors.Is(ctx.Err(), context.Canceled) {
		return err // nothing is wrong with the daemon
	}
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
	defer func() { _ = f.Close() }()
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
	removeParents(host.hierarchies, d.groups)
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
