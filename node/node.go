package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/bundle"
	"github.com/legion-swarm/legion/dockerapi"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/containerd"
	"github.com/legion-swarm/legion/engine/executor"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/linux"
	"github.com/legion-swarm/legion/network/linux/keeper"
	"github.com/legion-swarm/legion/settings"
	"github.com/moby/moby/api/types/container"
)

// Build says what this program was made from.
type Build struct{ Version, Commit, Time string }

// Config is what a Node needs.
type Config struct {
	// Settings are valid, with absolute folders that exist. Required.
	Settings *settings.Daemon
	Build    Build
	Log      *slog.Logger
	// Ready is called once the sockets answer; may be nil.
	Ready func()
}

// Node is one node. Make one with New, then call Run once.
type Node struct {
	cfg      Config
	settings atomic.Pointer[settings.Daemon]
	log      *slog.Logger
	programs *bundle.Programs
	runtime  *containerd.Runtime
	plane    *linux.Plane
	networks *network.Networks
	engine   *engine.Engine
	executor *executor.Executor
	swarm    *swarmNode
	api      *apiMetrics
	id       string // of the engine, for info
	unlock   func()
	closers  []func() error
}

// New opens all that a node has and adopts what runs. On error nothing stays
// open. Conflict: another daemon has the data root.
func New(ctx context.Context, cfg Config) (_ *Node, err error) {
	n := &Node{cfg: cfg, log: cfg.Log, api: newAPIMetrics()}
	n.settings.Store(cfg.Settings)
	if n.unlock, err = lockRoot(cfg.Settings.DataRoot); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.id, err = engineID(cfg.Settings.DataRoot); err != nil {
		return nil, err
	}
	// First, so that containers' names are answered again.
	if err := n.openNetworks(ctx); err != nil {
		return nil, err
	}
	if n.programs, err = bundle.Open(filepath.Join(cfg.Settings.DataRoot, "bin")); err != nil {
		return nil, err
	}
	if err := n.openRuntime(ctx); err != nil {
		return nil, err
	}
	swarmDir := filepath.Join(cfg.Settings.DataRoot, "swarm")
	if state, err := loadMembership(swarmDir); err != nil || state != nil {
		n.networks.ExpectSwarm()
	}
	if err := n.openEngine(ctx); err != nil {
		return nil, err
	}
	n.executor, err = executor.New(executor.Config{Networks: n.networks,
		Engine: n.engine, Version: cfg.Build.Version, Labels: cfg.Settings.Labels, GenericResources: genericResources(cfg.Settings),
		Log: n.log.With("component", "executor"),
	})
	if err != nil {
		return nil, err
	}
	n.swarm = &swarmNode{
		dir: swarmDir, advertise: cfg.Settings.SwarmAdvertiseAddr, exec: n.executor, networks: n.networks,
		log: n.log, removeTasks: n.removeTasks,
	}
	return n, nil
}

// engineID is this node's engine's, made once.
func engineID(root string) (string, error) {
	name := filepath.Join(root, "engine-id")
	b, err := os.ReadFile(name)
	if id := strings.TrimSpace(string(b)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	id := api.NewID()
	return id, os.WriteFile(name, []byte(id+"\n"), 0o600)
}

func (n *Node) openRuntime(ctx context.Context) (err error) {
	s := n.cfg.Settings
	n.runtime, err = containerd.Open(ctx, containerd.Config{
		Root: filepath.Join(s.DataRoot, "containerd"), State: filepath.Join(s.ExecRoot, "containerd"),
		Address: s.Containerd, Namespace: s.ContainerdNamespace, Snapshotter: s.StorageDriver,
		Runc: n.programs.Runc, Shim: n.programs.Shim, ContainersPerShim: n.programs.ContainersPerShim(),
		CgroupParent: s.CgroupParent, Mirrors: s.RegistryMirrors, Insecure: s.InsecureRegistries,
		MaxDownloads: s.MaxDownloads, MaxUploads: s.MaxUploads, UserAgent: "legion/" + n.cfg.Build.Version,
		Log: n.log.With("component", "runtime"),
	})
	if err == nil {
		n.closers = append(n.closers, n.runtime.Close)
	}
	return err
}

func (n *Node) openNetworks(ctx context.Context) (err error) {
	s := n.cfg.Settings
	log := n.log.With("component", "network")
	n.plane, err = linux.New(linux.Config{
		Dir: filepath.Join(s.ExecRoot, "netns"), Owner: linux.OwnerOf(s.ExecRoot), BPF: filepath.Join(s.ExecRoot, "bpf"), Balancer: s.ServiceBalancer, Log: log,
		Keeper: []string{"/proc/self/exe", keeper.Command}, KeeperSocket: filepath.Join(s.ExecRoot, "keeper.sock"),
	})
	if err != nil {
		return err
	}
	n.closers = append(n.closers, n.plane.Close)
	o := network.Options{
		Dataplane: n.plane, Dir: filepath.Join(s.DataRoot, "network"), RuntimeDir: filepath.Join(s.ExecRoot, "network"), Log: log,
		Bridge: s.Bridge, BIP: s.BIP, BIP6: s.BIP6, FixedCIDR: s.FixedCIDR, MTU: s.MTU, NoICC: !s.ICC, NoMasquerade: !s.IPMasq,
		HostIP: s.HostIP, NoRules4: !s.IPTables, NoRules6: !s.IP6Tables, NoForward: !s.IPForward, NoUserProxy: !s.UserlandProxy, DirectRouting: s.DirectRouting,
		DNS: s.DNS,
	}
	if s.Bridge == "none" {
		o.Bridge, o.NoBridge = "", true
	}
	for _, p := range s.AddressPools {
		o.Pools = append(o.Pools, network.AddressPool{Base: p.Base, Size: p.Size})
	}
	if n.networks, err = network.New(ctx, o); err != nil {
		return err
	}
	n.closers = append(n.closers, func() error { return n.closeNetworks() })
	return nil
}

// closeNetworks leaves nothing behind on a host where nothing runs.
func (n *Node) closeNetworks() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := n.networks.Close(ctx, true)
	if api.Is(err, api.Conflict) {
		return n.networks.Close(ctx, false)
	}
	return err
}

const closeTimeout = 10 * time.Second

func (n *Node) openEngine(ctx context.Context) (err error) {
	s := n.cfg.Settings
	initPath := s.InitPath
	if initPath == "" {
		initPath = n.programs.Init
	}
	seccomp := s.SeccompProfile
	if filepath.IsAbs(seccomp) {
		b, err := os.ReadFile(seccomp)
		if err != nil {
			return fmt.Errorf("seccomp profile: %w", err)
		}
		seccomp = string(b)
	}
	cfg := engine.Config{
		DataRoot: s.DataRoot, ExecRoot: s.ExecRoot, Runtime: n.runtime, Images: n.runtime.Images(), Networks: engineNetworks{n.networks},
		Log: n.log.With("component", "engine"), InitPath: initPath, Init: s.Init, LogDriver: s.LogDriver, LogOpts: s.LogOpts,
		ShmSize: s.DefaultShmSize, CgroupParent: s.CgroupParent, NoNewPrivileges: s.NoNewPrivileges,
		Seccomp: seccomp, IpcMode: container.IpcMode(s.DefaultIPCMode), CgroupnsMode: container.CgroupnsMode(s.DefaultCgroupns),
		DNS: s.DNS, HostGateway: s.HostGatewayIPs, DNSOptions: s.DNSOpts, DNSSearch: s.DNSSearch,
	}
	for _, name := range slices.Sorted(maps.Keys(s.DefaultUlimits)) {
		cfg.Ulimits = append(cfg.Ulimits, s.DefaultUlimits[name])
	}
	if n.engine, err = engine.New(cfg); err != nil {
		return err
	}
	return n.engine.Restore(ctx)
}

// removeTasks removes all tasks' containers, as the node leaves its swarm.
func (n *Node) removeTasks(ctx context.Context) error {
	list, err := n.engine.ContainerList(ctx, engine.ContainerListOptions{All: true, Filters: api.Filters{"is-task": {"true"}}})
	if err != nil {
		return err
	}
	var g errgroup.Group
	for i := range list {
		g.Go(func() error {
			err := n.engine.ContainerRemove(ctx, list[i].ID, engine.RemoveOptions{Force: true, Volumes: true})
			if api.Is(err, api.NotFound) {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}

// Run serves until ctx ends (nil) or a part that the node can't do without
// fails. Containers live on.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.close()) }()
	server, err := n.server()
	if err != nil {
		return err
	}
	listeners, err := n.listen(ctx)
	if err != nil {
		return err
	}
	defer n.swarm.end(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return named("runtime", n.runtime.Run(ctx)) })
	g.Go(func() error { return named("network", n.networks.Run(ctx)) })
	g.Go(func() error { return named("engine", n.engine.Run(ctx)) })
	g.Go(func() error { return named("swarm events", n.tellSwarm(ctx)) })
	n.swarm.resume(ctx)
	g.Go(func() error { return named("api", server.Serve(ctx, listeners...)) })
	if a := n.cfg.Settings.MetricsAddr; a != "" {
		g.Go(func() error { return named("metrics", n.serveMetrics(ctx, a)) })
	}
	for _, l := range listeners {
		n.log.Info("API listens", "address", l.Addr().Network()+"://"+l.Addr().String())
	}
	if n.cfg.Ready != nil {
		n.cfg.Ready()
	}
	return g.Wait()
}

func (n *Node) server() (*dockerapi.Server, error) {
	return dockerapi.New(dockerapi.Config{
		Containers: n.engine, Images: n.engine, Volumes: n.engine, System: n, Swarm: n.swarm, Cluster: cluster{n.swarm},
		Networks: networks{local: n.networks, containers: n.engine, swarm: n.swarmNetworks},
		Logger:   n.log.With("component", "api"), Version: n.cfg.Build.Version, Profile: n.cfg.Settings.Debug, Metrics: n.api,
	})
}

func (n *Node) swarmNetworks() (swarmNetworks, error) {
	r, err := n.swarm.leading()
	if err != nil {
		return nil, err
	}
	return r.control, nil
}

func (n *Node) listen(ctx context.Context) (_ []net.Listener, err error) {
	var out []net.Listener
	defer func() {
		if err != nil {
			for _, l := range out {
				_ = l.Close() // the reason is in err
			}
		}
	}()
	s := n.cfg.Settings
	config, err := serverTLS(s)
	if err != nil {
		return nil, err
	}
	for _, h := range s.Hosts {
		group := s.Group
		if !s.GroupSet && strings.HasPrefix(h, "unix:") && !groupExists(group) {
			group = ""
		}
		l, err := dockerapi.Listen(ctx, dockerapi.ListenConfig{Address: h, Group: group, TLS: config})
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// serverTLS reads the certificates of --tls and --tlsverify; nil without them.
func serverTLS(s *settings.Daemon) (*tls.Config, error) {
	if !s.TLS && !s.TLSVerify {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(s.TLSCert, s.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("could not load the daemon's certificate (--tlscert, --tlskey): %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	if s.TLSVerify {
		pem, err := os.ReadFile(s.TLSCACert)
		if err != nil {
			return nil, fmt.Errorf("could not read the clients' CA (--tlscacert): %w", err)
		}
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if !c.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s (--tlscacert)", s.TLSCACert)
		}
	}
	return c, nil
}

// Reload takes over the settings that may change while the node runs: labels.
func (n *Node) Reload(s *settings.Daemon) error {
	n.settings.Store(s)
	return nil
}

// close gives back what New opened, newest first.
func (n *Node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	n.unlock()
	return errors.Join(errs...)
}
