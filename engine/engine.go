package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

// Engine is the node's engine. Make one with New, call Restore once, then Run.
// All methods are safe for concurrent use after Restore.
//
// Locks: Engine.mu guards who exists and who has which name; container.mu
// guards one container's state. Neither is held while the runtime, the network
// or the disk works; container.ops serialises the long operations that change
// what runs. Order: ops, Engine.mu, container.mu.
type Engine struct {
	mu         sync.Mutex
	containers map[string]*ctr   // by id
	names      map[string]string // to ids; reserved before the container is there
	execs      map[string]*execution
	closed     bool

	cfg     Config
	dir     string // of containers
	events  *bus
	volumes *volumes
	users   *userCache
	seccomp *seccompCache
	host    *hostFacts
	logOpts *logfile.Options // of containers that say nothing

	memory sync.Mutex // guards mounts of tmpfs for files

	// Background work: exits, health checks, restarts. life ends with Run.
	wg   sync.WaitGroup
	life context.Context
	quit context.CancelFunc
}

// New makes an engine on its folders. It starts nothing.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	host := readHost()
	e := &Engine{
		containers: make(map[string]*ctr), names: make(map[string]string), execs: make(map[string]*execution),
		cfg: cfg, dir: filepath.Join(cfg.DataRoot, "containers"),
		events: newBus(cfg.Now), users: newUserCache(), seccomp: newSeccompCache(host.x32), host: host,
	}
	e.life, e.quit = context.WithCancel(context.Background())
	for _, dir := range []string{e.dir, filepath.Join(cfg.DataRoot, "volumes"), cfg.ExecRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("engine: %w", err)
		}
	}
	if e.volumes, err = openVolumes(filepath.Join(cfg.DataRoot, "volumes"), cfg.Now); err != nil {
		return nil, err
	}
	e.logOpts, err = logfile.Parse(cfg.LogDriver, cfg.LogOpts)
	return e, err
}

// Run serves until ctx ends: it takes what the runtime reports, checks
// containers' health and restarts them. Containers run on when it returns; no
// method may be called any more.
func (e *Engine) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	exits, err := e.cfg.Runtime.Exits(ctx)
	if err != nil {
		return fmt.Errorf("engine: ends of processes: %w", err)
	}
	ooms, err := e.cfg.Runtime.OOMs(ctx)
	if err != nil {
		return fmt.Errorf("engine: out-of-memory reports: %w", err)
	}
	g.Go(func() error { return e.takeExits(ctx, exits) })
	g.Go(func() error { return e.takeOOMs(ctx, ooms) })
	err = g.Wait()
	e.shut()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// shut ends background work and waits for it.
func (e *Engine) shut() {
	e.mu.Lock()
	already := e.closed
	e.closed = true
	all := make([]*ctr, 0, len(e.containers))
	for _, c := range e.containers {
		all = append(all, c)
	}
	e.mu.Unlock()
	if already {
		return
	}
	e.quit()
	for _, c := range all {
		c.mu.Lock()
		r, log := c.run, c.log
		c.mu.Unlock()
		if r != nil {
			r.release()
		}
		if log != nil {
			_ = log.Close()
		}
	}
	e.events.close()
	e.wg.Wait()
}

// spawn runs f in the background with a context that ends with Run.
func (e *Engine) spawn(f func(ctx context.Context)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.wg.Go(func() { f(e.life) })
}

func (e *Engine) takeExits(ctx context.Context, exits <-chan Exit) error {
	for {
		select {
		case x, ok := <-exits:
			if !ok {
				return streamEnded(ctx, "ends of processes")
			}
			if x.ExecID != "" {
				e.execEnded(x)
				continue
			}
			if c, err := e.find(x.ID); err == nil {
				c.processEnded(x)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Engine) takeOOMs(ctx context.Context, ooms <-chan string) error {
	for {
		select {
		case id, ok := <-ooms:
			if !ok {
				return streamEnded(ctx, "out-of-memory reports")
			}
			if c, err := e.find(id); err == nil {
				c.outOfMemory()
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func streamEnded(ctx context.Context, what string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return api.Errorf(api.Internal, "engine: the runtime stopped reporting %s", what)
}
