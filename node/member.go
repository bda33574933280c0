package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/rpc"
)

// member is this node as a member of a swarm, while it runs. Its worker part
// (credentials, agent, renewal) is always there; its manager part comes and goes
// with the node's role.
type member struct {
	dir    string // <data-root>/swarm
	creds  *rpc.Credentials
	vault  *vault
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
	root    []byte      // PEM that they say is to be trusted
	manager *managerPart
	changed chan struct{} // closed and replaced when node or certificate has changed
}

// memberConfig is what a member needs.
type memberConfig struct {
	dir     string
	state   *membership
	genesis *genesis // of a swarm that begins here; nil otherwise
	saved   bool     // state is on disk already
	// forced: this manager goes on alone, without those that it had beside it.
	forced bool
	kek    []byte // unlocks the files; nil: they are not locked
	exec   exec.Executor
	// networks is told of overlays; nil: nobody is.
	networks *network.Networks
	notify   func()
	log      *slog.Logger
}

// openMember reads what is on disk and, on a manager, takes the port; nothing
// runs until run, which gives all back. The error wraps ca.ErrLocked when kek does
// not open the files.
func openMember(cfg memberConfig) (*member, error) {
	creds := &rpc.Credentials{}
	vault, err := openVault(keyFiles(cfg.dir), cfg.kek, creds)
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	m := &member{
		dir: cfg.dir, creds: creds, vault: vault, log: cfg.log.With("node", cfg.state.NodeID), notify: cfg.notify,
		ready: make(chan struct{}), state: cfg.state, saved: cfg.saved, changed: make(chan struct{}),
		managers: agent.NewManagers(cfg.state.Managers),
	}
	m.worker = &workerPart{
		dir: cfg.dir, creds: m.creds, vault: vault, exec: cfg.exec, managers: m.managers, dial: m.dial, wanted: m.wanted, notice: m.noticed, renewed: m.wake, log: m.log,
		recovery: newRecovery(m.creds, vault, m.recovered, m.log),
	}
	if cfg.networks != nil {
		cfg.networks.SetLocal(cfg.state.dataAddr())
		m.worker.networks = cfg.networks
		m.worker.overlays = overlays{local: cfg.networks, addr: func() netip.Addr { return m.membership().dataAddr() }}
	}
	if m.isManager() {
		if m.manager, err = m.openManager(&cfg); err != nil {
			return nil, err
		}
	}
	return m, nil
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
	for ctx.Err() == nil {
		part := m.managing()
		if part == nil && m.isManager() {
			p, err := m.openManager(&memberConfig{})
			if err != nil {
				return err
			}
			m.setManager(p)
			part = p
		}
		_, changed := m.watch()
		if part == nil {
			if err := m.vault.open(); err != nil {
				return err
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		err := m.runManager(ctx, part)
		if !errors.Is(err, errNoManager) {
			return err
		}
		m.log.Info("this node is not a manager any more")
		m.setManager(nil)
		if err := m.resign(); err != nil {
			return err
		}
		// What the managers say now decides how it goes on.
		m.pause(ctx, changed)
	}
	return nil
}

// resignPause is how long a node that was taken out of the log waits to be told
// its role, before it asks to be let in again.
const resignPause = 2 * time.Second

func (m *member) pause(ctx context.Context, changed <-chan struct{}) {
	if !m.isManager() {
		return
	}
	t := time.NewTimer(resignPause)
	defer t.Stop()
	for m.isManager() {
		select {
		case <-changed:
			_, changed = m.watch()
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// resign removes the log of a manager that was.
func (m *member) resign() error {
	if err := os.RemoveAll(filepath.Join(m.dir, raftDir)); err != nil {
		return fmt.Errorf("remove the raft log of a manager that was: %w", err)
	}
	return m.remember(func(s *membership) { s.RaftID = 0 })
}

// runManager runs the manager part until ctx ends (nil), it fails, or the node
// is no manager any more (errNoManager).
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
	if err := <-done; err != nil && !errors.Is(err, errNoManager) {
		return err
	}
	return errNoManager
}

// errNoManager: the node is taken out of the log, or has a worker's certificate.
var errNoManager = errors.New("this node is not a manager any more")

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

// wanted returns what the managers want of this node's certificate.
func (m *member) wanted() (wish, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := wish{root: m.root}
	if m.node != nil {
		w.role = m.node.Role
		if m.node.Certificate.State == api.CertificateRotate {
			w.rotate = m.node
		}
	}
	return w, m.changed
}

// wake tells who watches.
func (m *member) wake() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
}

// recovered notes that the node has a certificate that waited for it: what managers
// said before does not count any more.
func (m *member) recovered() {
	m.mu.Lock()
	m.node, m.root = nil, nil
	m.mu.Unlock()
	m.wake()
}

// noticed takes what a manager says.
func (m *member) noticed(n agent.Notice) {
	m.learn(n.Managers)
	if n.Node == nil {
		return
	}
	m.mu.Lock()
	m.node, m.root = n.Node, n.RootCert
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

// peers returns the addresses of the managers that the node knows of, without its
// own.
func (m *member) peers() []string {
	known := m.membership()
	var addrs []string
	for _, p := range known.Managers {
		if p.NodeID != known.NodeID && p.Addr != known.AdvertiseAddr {
			addrs = append(addrs, p.Addr)
		}
	}
	return addrs
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
