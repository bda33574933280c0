package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/rpc"
)

// member is this node as a member of a swarm, while it runs. Its worker part
// (credentials, agent, renewal) is always there; its manager part comes and goes
// with the node's role.
type member struct {
	dir    string // <data-root>/swarm
	creds  *rpc.Credentials
	log    *slog.Logger
	worker *workerPart
	// managers are those of the swarm, as far as this node knows.
	managers *agent.Managers
	// notify is told when the manager part came or went; it must not block.
	notify func()
	ready  chan struct{} // closed when the managers have taken the node in
	once   sync.Once

	mu      sync.Mutex
	state   *membership // immutable; see remember
	saved   bool        // state is on disk
	node    *api.Node   // what the managers last said of this node; nil at first
	manager *managerPart
	changed chan struct{} // closed and replaced when node or certificate has changed
}

// memberConfig is what a member needs.
type memberConfig struct {
	dir     string
	state   *membership
	genesis *genesis // of a swarm that begins here; nil otherwise
	saved   bool     // state is on disk already
	exec    exec.Executor
	notify  func()
	log     *slog.Logger
}

// openMember reads what is on disk and, on a manager, takes the port; nothing
// runs yet. Call run, or close.
func openMember(cfg memberConfig) (*member, error) {
	keys, err := keyFiles(cfg.dir).Load(nil, time.Now())
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	m := &member{
		dir: cfg.dir, creds: &rpc.Credentials{}, log: cfg.log.With("node", cfg.state.NodeID), notify: cfg.notify,
		ready: make(chan struct{}), state: cfg.state, saved: cfg.saved, changed: make(chan struct{}),
		managers: agent.NewManagers(cfg.state.Managers),
	}
	if err := m.creds.Set(keys); err != nil {
		return nil, err
	}
	m.worker = &workerPart{
		dir: cfg.dir, creds: m.creds, exec: cfg.exec, managers: m.managers, dial: m.dial, wanted: m.wanted, notice: m.noticed, renewed: m.wake, log: m.log,
	}
	if m.isManager() {
		if m.manager, err = m.openManager(cfg.genesis); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// close ends a member whose run was never called.
func (m *member) close() error {
	if m.manager == nil {
		return nil
	}
	return m.manager.close()
}

// isManager reports whether the node's certificate is a manager's.
func (m *member) isManager() bool { return m.creds.Keys().Identity().Role == swarm.NodeRoleManager }

// run is the member's life: until ctx ends (nil), or something that it can't
// do without fails.
func (m *member) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.worker.run(ctx) })
	g.Go(func() error { return m.manage(ctx) })
	return g.Wait()
}

// manage runs the manager part for as long as the node is a manager.
func (m *member) manage(ctx context.Context) error {
	for {
		_, changed := m.watch()
		part := m.managing()
		switch {
		case part == nil && m.isManager():
			p, err := m.openManager(nil)
			if err != nil {
				return err
			}
			m.setManager(p)
			continue
		case part != nil:
			err := m.runManager(ctx, part)
			if err != nil || ctx.Err() != nil {
				return err
			}
			m.setManager(nil)
			if err := part.forget(); err != nil {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// runManager runs the manager part until ctx ends, it fails, or the node is no
// manager any more.
func (m *member) runManager(ctx context.Context, part *managerPart) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- part.run(ctx) }()
	for m.isManager() {
		_, changed := m.watch()
		select {
		case <-changed:
		case err := <-done:
			return err
		}
	}
	stop()
	return <-done
}

// managing returns the manager part; nil on a worker.
func (m *member) managing() *managerPart {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.manager
}

func (m *member) setManager(p *managerPart) {
	m.mu.Lock()
	m.manager = p
	m.mu.Unlock()
	m.notify()
}

// watch returns what the managers last said of this node, and a channel that is
// closed when they say something else or the certificate has changed.
func (m *member) watch() (*api.Node, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node, m.changed
}

// wanted returns the role that the managers gave this node; empty when they have
// not said yet.
func (m *member) wanted() (swarm.NodeRole, <-chan struct{}) {
	n, changed := m.watch()
	if n == nil {
		return "", changed
	}
	return n.Role, changed
}

// wake tells who watches.
func (m *member) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// noticed takes what a manager says.
func (m *member) noticed(n agent.Notice) {
	m.learn(n.Managers)
	if n.Node == nil {
		return
	}
	m.mu.Lock()
	m.node = n.Node
	m.mu.Unlock()
	m.wake()
	if n.Node.Status.State == swarm.NodeStateReady {
		m.once.Do(func() { close(m.ready) })
	}
}

// membership returns what the node remembers of its swarm; not to be changed.
func (m *member) membership() *membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// remember changes what the node remembers of its swarm, on disk too if it is
// there already.
func (m *member) remember(change func(*membership)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := *m.state
	change(&next)
	if m.saved {
		if err := next.save(m.dir); err != nil {
			return err
		}
	}
	m.state = &next
	return nil
}

// keep puts what the node remembers on disk: from now on a start of the daemon
// resumes the membership.
func (m *member) keep() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.state.save(m.dir); err != nil {
		return err
	}
	m.saved = true
	return nil
}

// named says which part failed. A part that ends with its context has not.
func named(name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// forget removes all that membership left on disk.
func forget(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the swarm's data: %w", err)
	}
	return nil
}
