package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	bolt "go.etcd.io/bbolt"

	"github.com/legion-swarm/legion/api"
)

// storage is containerd's stores: in this process or behind a socket. Calls
// need a context from Runtime.in.
type storage struct {
	content   content.Store
	snapshots snapshots.Snapshotter
	name      string // the snapshotter's
	images    images.Store
	leases    leases.Manager
	applier   diff.Applier

	collect func(context.Context) error // removes what nothing refers to
	close   func() error
}

// openEmbedded assembles containerd's stores below root.
func openEmbedded(ctx context.Context, root, snapshotter string) (_ *storage, err error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, err
	}
	sn, name, err := openSnapshotter(root, snapshotter)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, sn.Close())
		}
	}()
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(root, "meta.db")
	// The time-out bounds the wait for another process's lock.
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoFreelistSync: true})
	if err != nil {
		if errors.Is(err, bolt.ErrTimeout) {
			return nil, api.Errorf(api.Conflict, "containerd: %s is in use by another process; is another daemon running on this data root?", path)
		}
		return nil, fmt.Errorf("containerd: open %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}()
	meta := metadata.NewDB(db, blobs, map[string]snapshots.Snapshotter{name: sn})
	if err := meta.Init(ctx); err != nil {
		return nil, fmt.Errorf("containerd: %s: %w", path, err)
	}
	var gc sync.Mutex
	return &storage{
		content:   meta.ContentStore(),
		snapshots: meta.Snapshotter(name),
		name:      name,
		images:    metadata.NewImageStore(meta),
		leases:    metadata.NewLeaseManager(meta),
		applier:   apply.NewFileSystemApplier(meta.ContentStore()),
		collect: func(ctx context.Context) error {
			gc.Lock()
			defer gc.Unlock()
			_, err := meta.GarbageCollect(ctx)
			return err
		},
		close: func() error { return errors.Join(db.Close(), sn.Close()) },
	}, nil
}

func openSnapshotter(root, name string) (snapshots.Snapshotter, string, error) {
	dir := func(n string) string { return filepath.Join(root, "snapshots", n) }
	if name == "" {
		name = "overlayfs"
		if err := os.MkdirAll(dir(name), 0o700); err != nil {
			return nil, "", err
		}
		if overlayutils.Supported(dir(name)) != nil {
			name = "native"
		}
	}
	var sn snapshots.Snapshotter
	var err error
	switch name {
	case "overlayfs":
		sn, err = overlay.NewSnapshotter(dir(name))
	case "native":
		sn, err = native.NewSnapshotter(dir(name))
	default:
		return nil, "", api.Errorf(api.Invalid, "containerd: unknown snapshotter %q; use overlayfs or native", name)
	}
	if err != nil {
		return nil, "", fmt.Errorf("containerd: snapshotter %s: %w", name, err)
	}
	return sn, name, nil
}

// openExternal uses a containerd daemon's stores.
func openExternal(ctx context.Context, address, namespace, snapshotter string) (*storage, error) {
	c, err := client.New(address, client.WithDefaultNamespace(namespace), client.WithTimeout(10*time.Second))
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "containerd: cannot connect to %s: %w; is it running?", address, err)
	}
	if snapshotter == "" {
		snapshotter = "overlayfs"
	}
	s := &storage{
		content:   c.ContentStore(),
		snapshots: c.SnapshotService(snapshotter),
		name:      snapshotter,
		images:    c.ImageService(),
		leases:    c.LeasesService(),
		applier:   c.DiffService(),
		close:     c.Close,
	}
	// The end of a lease can be made to wait for a collection.
	s.collect = func(ctx context.Context) error {
		l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
		if err != nil {
			return err
		}
		return s.leases.Delete(ctx, l, leases.SynchronousDelete)
	}
	if _, err := c.Version(ctx); err != nil {
		return nil, errors.Join(api.Errorf(api.Unavailable, "containerd: %s does not answer: %w", address, err), c.Close())
	}
	return s, nil
}

// dropLeases ends the leases that an earlier process left, and tells whether
// there were any. Only for a store that nobody else uses.
func (s *storage) dropLeases(ctx context.Context) (bool, error) {
	all, err := s.leases.List(ctx)
	if err != nil {
		return false, err
	}
	for _, l := range all {
		if err := s.leases.Delete(ctx, l); err != nil {
			return false, err
		}
	}
	return len(all) > 0, nil
}

// lease protects what is written with the returned context from garbage
// collection until release is called, or for a day if the process dies.
func (s *storage) lease(ctx context.Context) (context.Context, func(), error) {
	l, err := s.leases.Create(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
	if err != nil {
		return nil, nil, fmt.Errorf("containerd: lease: %w", err)
	}
	free := context.WithoutCancel(ctx)
	return leases.WithLease(ctx, l.ID), func() { _ = s.leases.Delete(free, l) }, nil
}
