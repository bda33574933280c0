package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// atOnce bounds the machines that one command works on at a time.
	atOnce = 8
	// cleanTimeout bounds the removal of what an interrupted create left.
	cleanTimeout = 30 * time.Second
)

// Config says where a fleet is kept and what can be in it.
type Config struct {
	// Dir holds the records; see StorageDir.
	Dir string
	// Drivers by name.
	Drivers map[string]Driver
	// Progress is where steps are told, a line each. Writes are serialised.
	Progress io.Writer
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Fleet is all machines of one storage folder. Its methods may be called at
// once, and several processes may have the same folder open.
type Fleet struct {
	cfg    Config
	folder folder

	mu sync.Mutex // guards cfg.Progress
}

// StorageDir is where a user's machines are: MACHINE_STORAGE_PATH, else for
// root /var/lib/legion-machine, else .legion/machine in the home folder.
func StorageDir(getenv func(string) string, uid int) string {
	if dir := getenv("MACHINE_STORAGE_PATH"); dir != "" {
		return dir
	}
	if home := getenv("HOME"); uid != 0 && home != "" {
		return filepath.Join(home, ".legion", "machine")
	}
	return DefaultStorageDir
}

// DefaultStorageDir is root's.
const DefaultStorageDir = "/var/lib/legion-machine"

// New returns the fleet. It touches nothing.
func New(cfg Config) (*Fleet, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("storage folder %q (MACHINE_STORAGE_PATH) is not an absolute path", cfg.Dir)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	return &Fleet{cfg: cfg, folder: folder{filepath.Clean(cfg.Dir)}}, nil
}

// Dir is the storage folder.
func (f *Fleet) Dir() string { return f.folder.dir }

// Machine returns the machine of that name and its driver.
func (f *Fleet) Machine(name string) (*Machine, Driver, error) {
	r, err := f.folder.load(name)
	if err != nil {
		return nil, nil, err
	}
	d, err := f.driver(r.Driver)
	if err != nil {
		return nil, nil, fmt.Errorf("machine %q: %w", name, err)
	}
	return f.machine(r), d, nil
}

// Names of all machines, sorted.
func (f *Fleet) Names() ([]string, error) { return f.folder.names() }

func (f *Fleet) driver(name string) (Driver, error) {
	d, ok := f.cfg.Drivers[name]
	if !ok {
		return nil, fmt.Errorf("unknown driver %q: the drivers are %s", name, strings.Join(slices.Sorted(maps.Keys(f.cfg.Drivers)), ", "))
	}
	return d, nil
}

func (f *Fleet) machine(r Record) *Machine {
	return &Machine{Record: r, Dir: f.folder.machine(r.Name), Say: func(format string, args ...any) {
		f.mu.Lock()
		defer f.mu.Unlock()
		_, _ = fmt.Fprintf(f.cfg.Progress, "(%s) %s\n", r.Name, fmt.Sprintf(format, args...))
	}}
}

func (f *Fleet) lock(ctx context.Context, name, verb string) (func(), error) {
	unlock, err := Lock(ctx, filepath.Join(f.folder.dir, locksDir, name), "legion machine "+verb+" "+name)
	return func() {
		unlock()
		f.folder.tidy()
	}, err
}

// Spec says what to create.
type Spec struct {
	// Driver is the driver's name.
	Driver string
	// Engine is how the daemons are started.
	Engine Engine
	// Options are the driver's own; nil: none.
	Options any
}

// Create makes machines, at once. One that can't be finished is removed; the
// others stay.
func (f *Fleet) Create(ctx context.Context, names []string, s Spec) error {
	d, err := f.driver(s.Driver)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errors.New("no machine name specified")
	}
	for i, n := range names {
		if err := ValidateName(n); err != nil {
			return err
		}
		if slices.Contains(names[:i], n) {
			return fmt.Errorf("machine %q is named twice", n)
		}
	}
	r := Record{Driver: s.Driver, Created: f.cfg.Now().UTC(), Engine: s.Engine}
	if s.Options != nil {
		if r.Options, err = json.Marshal(s.Options); err != nil {
			return err
		}
	}
	var pending []*Machine
	var errs []error
	for _, name := range names {
		r := r
		r.Name = name
		m, release, err := f.prepare(ctx, d, r)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		defer release()
		pending = append(pending, m)
	}
	errs = append(errs, each(pending, (*Machine).name, func(m *Machine) error {
		began := f.cfg.Now()
		err := d.Create(ctx, m)
		if err == nil {
			m.Made = true
			err = f.folder.save(m.Record)
		}
		if err != nil {
			return f.undo(ctx, d, m, err)
		}
		m.Say("ready after %.1f s", f.cfg.Now().Sub(began).Seconds())
		return nil
	}))
	return errors.Join(errs...)
}

// prepare makes the machine's record, and keeps it locked until release.
func (f *Fleet) prepare(ctx context.Context, d Driver, r Record) (m *Machine, release func(), err error) {
	release, err = f.lock(ctx, r.Name, "create")
	if err != nil {
		return nil, nil, err
	}
	if err := f.folder.make(r.Name); err != nil {
		release()
		return nil, nil, err
	}
	m = f.machine(r)
	if err = f.folder.save(r); err == nil {
		err = d.Prepare(ctx, m)
	}
	if err != nil {
		err = f.undo(ctx, d, m, err)
		release()
		return nil, nil, err
	}
	return m, release, nil
}

// undo removes what was made of a machine before the error, which may be that
// the context has ended.
func (f *Fleet) undo(ctx context.Context, d Driver, m *Machine, err error) error {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if left := d.Remove(clean, m); left != nil {
		return errors.Join(err, fmt.Errorf("and what was made of it could not be removed (try: legion machine rm -f %s): %w", m.Name, left))
	}
	return errors.Join(err, f.folder.remove(m.Name))
}

// Verb is what can be done to machines that are there.
type Verb string

// The verbs.
const (
	VerbStart   Verb = "start"
	VerbStop    Verb = "stop"
	VerbRestart Verb = "restart"
	VerbKill    Verb = "kill"
)

// Do does it to the machines, at once. To start what runs or stop what is
// stopped is no error.
func (f *Fleet) Do(ctx context.Context, v Verb, names []string) error {
	return each(names, itself, func(name string) error {
		return f.locked(ctx, name, string(v), func(m *Machine, d Driver) error { return f.do(ctx, v, m, d) })
	})
}

func (f *Fleet) do(ctx context.Context, v Verb, m *Machine, d Driver) error {
	if !m.Made {
		return fmt.Errorf("its creation was never finished: remove it (legion machine rm -f %s) and create it again", m.Name)
	}
	s, err := d.State(ctx, m)
	if err != nil {
		return err
	}
	if running := s == StateRunning; v == VerbStart && running || v != VerbStart && v != VerbRestart && s == StateStopped {
		m.Say("is %s already", strings.ToLower(string(s)))
		return nil
	}
	switch v {
	case VerbStart:
		return d.Start(ctx, m)
	case VerbStop:
		return d.Stop(ctx, m)
	case VerbKill:
		return d.Kill(ctx, m)
	}
	if s != StateStopped {
		if err := d.Stop(ctx, m); err != nil {
			return err
		}
	}
	return d.Start(ctx, m)
}

// Remove removes machines with all their data. With force, a machine whose
// driver fails or whose record can't be read loses its folder all the same, and
// one that is not there is no error.
func (f *Fleet) Remove(ctx context.Context, names []string, force bool) error {
	return each(names, itself, func(name string) error {
		err := f.locked(ctx, name, "rm", func(m *Machine, d Driver) error {
			if err := d.Remove(ctx, m); err != nil && !force {
				return err
			} else if err != nil {
				m.Say("removed, but: %v", err)
			}
			return f.folder.remove(name)
		})
		if err == nil || !force || ValidateName(name) != nil {
			return err
		}
		if _, _, unusable := f.Machine(name); unusable != nil {
			return f.folder.remove(name) // the folder, if there is one
		}
		return err
	})
}

// Disconnect cuts the machines from those others, or from everything.
func (f *Fleet) Disconnect(ctx context.Context, names, from []string) error {
	return f.cut(ctx, "disconnect", names, func(c Cutter, m *Machine) error { return c.Disconnect(ctx, m, from) })
}

// Connect heals what Disconnect cut.
func (f *Fleet) Connect(ctx context.Context, names, to []string) error {
	return f.cut(ctx, "connect", names, func(c Cutter, m *Machine) error { return c.Connect(ctx, m, to) })
}

func (f *Fleet) cut(ctx context.Context, verb string, names []string, do func(Cutter, *Machine) error) error {
	return each(names, itself, func(name string) error {
		return f.locked(ctx, name, verb, func(m *Machine, d Driver) error {
			c, ok := d.(Cutter)
			if !ok {
				return fmt.Errorf("machines of driver %s can't be cut from the network", m.Driver)
			}
			return do(c, m)
		})
	})
}

func (f *Fleet) locked(ctx context.Context, name, verb string, do func(*Machine, Driver) error) error {
	if _, err := f.folder.load(name); err != nil {
		return err // without making a lock file
	}
	unlock, err := f.lock(ctx, name, verb)
	if err != nil {
		return err
	}
	defer unlock()
	m, d, err := f.Machine(name)
	if err != nil {
		return err
	}
	return do(m, d)
}

// each calls do for every one, several at once, and joins the errors, which it
// gives the machine's name.
func each[T any](all []T, name func(T) string, do func(T) error) error {
	errs := make([]error, len(all))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, one := range all {
		g.Go(func() error {
			err := do(one)
			if err != nil && err.Error() == "" { // a signal has no words
				err = fmt.Errorf("interrupted%w", err)
			}
			if err != nil {
				errs[i] = fmt.Errorf("%s: %w", name(one), err)
			}
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}

func itself(name string) string { return name }
