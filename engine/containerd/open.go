package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legion-swarm/legion/engine"
)

// Runtime is engine.Runtime on containerd's runc shim.
type Runtime struct {
	mu  sync.Mutex
	all map[string]*container

	cfg     Config
	dir     string // State/c: a bundle a container
	options *anypb.Any
	st      *storage
	layers  *layers
	shims   *shims
	images  *Images
	exits   *queue[engine.Exit]
	ooms    *queue[string]
	wg      sync.WaitGroup
}

var _ engine.Runtime = (*Runtime)(nil)

// Open opens the stores, connects to the shims that an earlier process left
// and takes over their containers. Run must be called next; Close at the end.
func Open(ctx context.Context, cfg Config) (_ *Runtime, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	forwardLibraryLog(cfg.Log)
	r := &Runtime{
		all: make(map[string]*container), cfg: cfg, dir: filepath.Join(cfg.State, "c"),
		exits: newQueue[engine.Exit](), ooms: newQueue[string](),
	}
	r.options, err = typeurl.MarshalAnyToProto(&options.Options{BinaryName: cfg.Runc, Root: filepath.Join(cfg.State, "runc")})
	if err != nil {
		return nil, err
	}
	ctx = r.in(ctx)
	if cfg.Address != "" {
		r.st, err = openExternal(ctx, cfg.Address, cfg.Namespace, cfg.Snapshotter)
	} else {
		r.st, err = openEmbedded(ctx, cfg.Root, cfg.Snapshotter)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.layers, err = openLayers(ctx, cfg.Root, r.st); err != nil {
		return nil, err
	}
	r.images = newImages(r)
	if cfg.Address == "" {
		stale, err := r.st.dropLeases(ctx)
		if err != nil {
			return nil, err
		}
		if stale { // a transfer was cut short
			if err := r.images.collect(ctx); err != nil {
				return nil, err
			}
		}
	}
	if err = r.openShims(); err != nil {
		return nil, err
	}
	return r, r.restore(ctx)
}

func (r *Runtime) openShims() error {
	sockets := socketDir(r.cfg.State)
	r.shims = &shims{
		all: make(map[string]*shim), dir: filepath.Join(r.cfg.State, "shims"), sockets: sockets,
		binary: r.cfg.Shim, namespace: r.cfg.Namespace, events: filepath.Join(sockets, "events"),
		limit: r.cfg.ContainersPerShim, log: r.cfg.Log, wg: &r.wg, lost: r.orphan,
	}
	for _, dir := range []string{r.dir, r.shims.dir, sockets} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	return nil
}

// Images returns the image store that the containers' root file systems are
// made from.
func (r *Runtime) Images() *Images { return r.images }

// Close disconnects from the shims, which run on with their containers, and
// closes the stores. No method may be called any more.
func (r *Runtime) Close() error {
	if r.shims != nil {
		r.shims.close()
	}
	r.wg.Wait()
	return r.st.close()
}

// in is ctx for calls to containerd and to shims.
func (r *Runtime) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, r.cfg.Namespace)
}

// Exits implements engine.Runtime.
func (r *Runtime) Exits(ctx context.Context) (<-chan engine.Exit, error) {
	return r.exits.deliver(ctx), nil
}

// OOMs implements engine.Runtime.
func (r *Runtime) OOMs(ctx context.Context) (<-chan string, error) { return r.ooms.deliver(ctx), nil }
