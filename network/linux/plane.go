package linux

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
	"github.com/legion-swarm/legion/network/linux/keeper"
)

// Config is for New.
type Config struct {
	// Dir has a file for each sandbox's namespace (<exec-root>/netns). Required,
	// absolute, and no other data plane's.
	Dir string
	// Owner tells this data plane's devices and tables from those of others in
	// the same host namespace: 1 to 16 of a-z, 0-9. Empty: the table is plainly
	// "legion" and the owner "node".
	Owner string
	// HostNetNS is the namespace that plays the host; empty: the process's own.
	HostNetNS string
	// BPF is a folder of its own on which a file system for pinned eBPF programs
	// and maps is mounted (<exec-root>/bpf). Empty: no eBPF.
	BPF string
	// Cgroup is the cgroup2 directory that all containers are in; empty: where that
	// is mounted.
	Cgroup string
	// Balancer forces how virtual addresses lead to backends: BalancerEBPF or
	// BalancerNFTables. Empty: the first of these that the host has.
	Balancer string
	// Keeper starts a keeper: a program's path and arguments. Its socket is
	// KeeperSocket, in a folder that exists. Required.
	Keeper       []string
	KeeperSocket string
	// Log is required.
	Log *slog.Logger
}

const defaultOwner = "node"

// OwnerOf returns the owner for a daemon with that exec-root: empty for the
// default one, so that names are plain where there is one daemon.
func OwnerOf(execRoot string) string {
	if execRoot = filepath.Clean(execRoot); execRoot == "/run/legion" {
		return ""
	}
	sum := sha256.Sum256([]byte(execRoot))
	return hex.EncodeToString(sum[:4])
}

// Plane is the data plane of one node. See network.Dataplane for what may be
// called when.
type Plane struct {
	dir     string
	owner   string
	table   string
	log     *slog.Logger
	host    *os.File // namespace of the host
	own     *os.File // namespace of this process
	same    bool     // they are one
	workers int

	turn     chan struct{}  // held by Set
	stale    atomic.Bool    // have may not be what is there
	alarms   chan struct{}  // something in an overlay changed
	watching sync.WaitGroup // of watches
	gen      atomic.Uint32  // of the rule set, after our last change
	gens     generations    // that our changes led to
	times    setTimes
	sockets  *sockets   // owned by Set
	rules    ruleState  // owned by Set
	guard    guardState // owned by Set

	balancing   *balancing
	mesh        meshState // owned by Set
	meshSockets *sockets  // owned by Set
	forgetting  forgetter
	lent        lender                   // sockets in the host's namespace
	commit      func(*transaction) error // writes rules in sandboxes

	keeper       *keeper.Client
	cryptNodes   map[string]map[crypt.MAC]netip.Addr // of endpoints in encrypted overlays; nil: not known yet; owned by Set
	addrsChanged atomic.Bool                         // of the host, since Set last asked

	// lists is held while backends are changed. It is taken before mu.
	lists  sync.Mutex
	newest *network.Config // that Narrow was called with; guarded by lists

	mu        sync.Mutex
	have      *network.Config            // what is believed to be there; nil: not known
	veths     map[string]bool            // host ends of its interfaces
	making    map[string]*network.Bridge // of the Set that is under way
	handles   []*netlink.Handle
	watches   map[string]*overlayWatch // by overlay
	encrypted map[string]bool          // ids of overlays
	closed    bool
}

var (
	_ network.Dataplane = (*Plane)(nil)
	_ network.Resumer   = (*Plane)(nil)
)

// New returns a data plane; it changes nothing until Set.
func New(c Config) (*Plane, error) {
	switch {
	case c.Log == nil:
		return nil, errors.New("network: Log is required")
	case !filepath.IsAbs(c.Dir):
		return nil, fmt.Errorf("network: folder %q for namespaces must be an absolute path", c.Dir)
	case len(c.Keeper) == 0 || !filepath.IsAbs(c.KeeperSocket):
		return nil, errors.New("network: Keeper and an absolute path as KeeperSocket are required")
	case len(c.Owner) > 16 || strings.Trim(c.Owner, "abcdefghijklmnopqrstuvwxyz0123456789") != "":
		return nil, fmt.Errorf("network: owner %q must be at most 16 of a-z and 0-9", c.Owner)
	}
	p := &Plane{
		dir: c.Dir, owner: c.Owner, table: "legion", log: c.Log, workers: max(4, 2*runtime.GOMAXPROCS(0)),
		turn: make(chan struct{}, 1), alarms: make(chan struct{}, 1), watches: map[string]*overlayWatch{},
		commit: (*transaction).commit,
	}
	if p.owner == "" {
		p.owner = defaultOwner
	} else {
		p.table += "_" + p.owner
	}
	var err error
	if p.balancing, err = newBalancing(p, &c); err != nil {
		return nil, err
	}
	if p.own, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("network: open this process's namespace: %w", err)
	}
	path := c.HostNetNS
	if path == "" {
		path = "/proc/thread-self/ns/net"
	}
	if p.host, err = os.Open(path); err != nil {
		_ = p.own.Close()
		return nil, fmt.Errorf("network: open the host's namespace: %w", err)
	}
	if err := p.prepare(); err != nil {
		_ = p.own.Close()
		_ = p.host.Close()
		return nil, err
	}
	p.sockets, p.meshSockets = newSockets(p), newSockets(p)
	p.keeper = keeper.NewClient(keeper.Config{Socket: c.KeeperSocket, Command: c.Keeper, InHost: p.inHost, Lost: p.alarm, Log: c.Log})
	p.stale.Store(true)
	return p, nil
}

func (p *Plane) prepare() error {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(p.host.Fd()), &a); err != nil {
		return fmt.Errorf("network: look at the host's namespace: %w", err)
	}
	if err := unix.Fstat(int(p.own.Fd()), &b); err != nil {
		return fmt.Errorf("network: look at this process's namespace: %w", err)
	}
	p.same = a.Dev == b.Dev && a.Ino == b.Ino
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return fmt.Errorf("network: folder for namespaces: %w", err)
	}
	return nil
}

// Path of the file that a sandbox's namespace is bound to.
func (p *Plane) Path(sandbox string) string { return filepath.Join(p.dir, sandbox) }

// Close frees what the process holds: sockets of published ports (which stay
// published) and netlink sockets. What is in the kernel stays, and what the keeper
// holds; one that holds nothing ends. No other method may be under way.
func (p *Plane) Close() error {
	p.turn <- struct{}{}
	p.sockets.close()
	p.meshSockets.close()
	p.closeWatches()
	left := p.keeper.Close()
	p.forgetting.wg.Wait()
	p.lent.shut()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, h := range p.handles {
		h.Close()
	}
	p.handles = nil
	_ = os.Remove(p.dir) // stays if there are sandboxes
	return errors.Join(left, p.balancing.close(), p.host.Close(), p.own.Close())
}

// handle lends a netlink socket in the host's namespace; give it back with put.
func (p *Plane) handle() (*netlink.Handle, error) {
	p.mu.Lock()
	if n := len(p.handles); n > 0 {
		h := p.handles[n-1]
		p.handles = p.handles[:n-1]
		p.mu.Unlock()
		return h, nil
	}
	p.mu.Unlock()
	h, err := netlink.NewHandleAt(netns.NsHandle(p.host.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return h, nil
}

func (p *Plane) put(h *netlink.Handle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.handles) >= p.workers+1 {
		h.Close()
		return
	}
	p.handles = append(p.handles, h)
}

func (p *Plane) believed() *network.Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have
}

func (p *Plane) believe(c *network.Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have = c
	p.veths = make(map[string]bool, len(c.Sandboxes))
	for _, s := range c.Sandboxes {
		for i := range s.Interfaces {
			p.veths[s.Interfaces[i].HostName] = true
		}
	}
}

// failures gathers what went wrong, by item. Safe for concurrent use.
type failures struct {
	mu    sync.Mutex
	items map[network.Item]error
}

func (f *failures) add(it network.Item, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.items == nil {
		f.items = map[network.Item]error{}
	}
	f.items[it] = errors.Join(f.items[it], err)
}

func (f *failures) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.items) == 0 {
		return nil
	}
	return &network.SetError{Items: f.items}
}

// Set implements network.Dataplane.
func (p *Plane) Set(ctx context.Context, want *network.Config) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	watch := newStopwatch()
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	watch.did("wait")
	have := p.takeCuts()
	if p.stale.Swap(false) || have == nil {
		var err error
		if have, err = p.observe(have, want); err != nil {
			p.stale.Store(true)
			return fmt.Errorf("network: look at what is there: %w", err)
		}
	}
	watch.did("look")
	var f failures
	p.believe(p.apply(ctx, have, want, &f, watch))
	p.measured(watch)
	return f.err()
}

// apply makes the changes and returns what is there then.
func (p *Plane) apply(ctx context.Context, have, want *network.Config, f *failures, watch *stopwatch) *network.Config {
	ch := network.Diff(have, want)
	now := have.Clone()
	now.Rules4, now.Rules6, now.Forward, now.UserProxy = want.Rules4, want.Rules6, want.Forward, want.UserProxy
	if (len(want.Bridges) > 0 || want.Mesh != nil) && want.Forward && (ch.Options || ch.Mesh || len(ch.PutBridges) > 0) {
		f.add(network.RulesItem, p.enableForwarding(want))
	}
	now.Mesh = want.Mesh // others' rules are to let its device pass
	balanced := p.balancing.services(ch, now)
	watch.did("services")
	p.putBridges(ch, now, f)
	watch.did("bridges")
	p.putOverlays(ch, now, f)
	watch.did("overlays")
	p.setPorts(ch, now, f)
	watch.did("ports")
	f.add(network.RulesItem, p.setRules(now))
	watch.did("rules")
	p.dropResolvers(ch)
	p.setSandboxes(ctx, ch, now, f)
	watch.did("sandboxes")
	p.balancing.set(ch, now, balanced, f)
	watch.did("balancers")
	p.setResolvers(ch, now, f)
	watch.did("resolvers")
	p.setMesh(ctx, want, now, f)
	watch.did("mesh")
	p.dropBridges(ch, now, f)
	p.dropOverlays(ch, now, f)
	watch.did("remove")
	return now
}

// setSandboxes makes and removes sandboxes, several at a time.
func (p *Plane) setSandboxes(ctx context.Context, ch *network.Changes, now *network.Config, f *failures) {
	mesh := meshOverlay(ch.To)
	all := map[string]made{}
	var mu sync.Mutex // guards now.Sandboxes and all
	was := func(id string) *network.Sandbox {
		mu.Lock()
		defer mu.Unlock()
		return now.Sandboxes[id]
	}
	put := func(s *network.Sandbox) {
		m, err := p.putSandbox(ctx, was(s.ID), s, mesh)
		f.add(network.SandboxItem(s.ID), err)
		mu.Lock()
		defer mu.Unlock()
		all[s.ID] = m
		if delete(now.Sandboxes, s.ID); m.is != nil {
			now.Sandboxes[s.ID] = m.is
		}
	}
	drop := func(id string) {
		err := p.dropSandbox(was(id))
		f.add(network.SandboxItem(id), err)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			delete(now.Sandboxes, id)
		}
	}
	var wg sync.WaitGroup
	dropped := inTurn(ch.DropSandboxes)
	for range min(dropsAtOnce, len(ch.DropSandboxes)) {
		wg.Go(func() { dropped(drop) })
	}
	placed := inTurn(ch.PutSandboxes)
	for range min(p.workers, len(ch.PutSandboxes)) {
		wg.Go(func() {
			_ = p.locked(func() error { placed(put); return nil })
		})
	}
	wg.Wait()
	p.adopt(all)
}

// dropsAtOnce is how many sandboxes are removed at a time. To take a namespace's name
// away is to wait until all processors have noticed: many waits are as long as one.
const dropsAtOnce = 16

// inTurn returns what calls a function with the elements that nobody has had yet,
// until there are no more. It is safe for concurrent use.
func inTurn[T any](l []T) func(func(T)) {
	var next atomic.Int64
	return func(f func(T)) {
		for i := int(next.Add(1)) - 1; i < len(l); i = int(next.Add(1)) - 1 {
			f(l[i])
		}
	}
}
