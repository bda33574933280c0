package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/continuity/fs"
	docker "github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MakeRootfs implements engine.Runtime.
func (r *Runtime) MakeRootfs(ctx context.Context, id, image, platform string, sizeBytes int64) error {
	if err := validID(id); err != nil {
		return err
	}
	ctx = r.in(ctx)
	chain, err := r.images.chain(ctx, image, platform)
	if err != nil {
		return err
	}
	_, err = r.layers.prepare(ctx, id, origin{chain, image, platform}, false, sizeBytes)
	return err
}

// Mount implements engine.Runtime.
func (r *Runtime) Mount(ctx context.Context, id string) (string, func() error, error) {
	if err := validID(id); err != nil {
		return "", nil, err
	}
	ctx = r.in(ctx)
	mounts, err := r.layers.mounts(ctx, id)
	if err != nil {
		return "", nil, err
	}
	// A running container's root is bound, not mounted a second time: two
	// overlays on one upper folder do not see each other's changes.
	root := filepath.Join(r.dir, id, "rootfs")
	if mounted, err := mountinfo.Mounted(root); err == nil && mounted {
		mounts = []mount.Mount{{Type: "bind", Source: root, Options: []string{"bind", "rw"}}}
	}
	return r.mountAt(mounts)
}

// mountAt mounts in a new folder under State; release undoes it.
func (r *Runtime) mountAt(mounts []mount.Mount) (string, func() error, error) {
	parent := filepath.Join(r.cfg.State, "m")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(parent, "")
	if err != nil {
		return "", nil, err
	}
	release := sync.OnceValue(func() error {
		if err := mount.UnmountAll(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("containerd: unmount %s: %w", dir, err)
		}
		return os.Remove(dir)
	})
	if err := mount.All(mounts, dir); err != nil {
		_ = release()
		return "", nil, fmt.Errorf("containerd: mount a root file system: %w", err)
	}
	return dir, release, nil
}

// unmountLeftovers undoes the mounts of an earlier process.
func (r *Runtime) unmountLeftovers() error {
	parent := filepath.Join(r.cfg.State, "m")
	dirs, err := names(parent)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := filepath.Join(parent, d)
		if err := mount.UnmountAll(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("containerd: unmount %s: %w", dir, err)
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	return nil
}

// Changes implements engine.Runtime.
func (r *Runtime) Changes(ctx context.Context, id string) ([]docker.FilesystemChange, error) {
	var list []docker.FilesystemChange
	add := func(k fs.ChangeKind, path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		kind := map[fs.ChangeKind]docker.ChangeType{
			fs.ChangeKindAdd: docker.ChangeAdd, fs.ChangeKindModify: docker.ChangeModify, fs.ChangeKindDelete: docker.ChangeDelete,
		}
		if k != fs.ChangeKindUnmodified && path != "/" {
			list = append(list, docker.FilesystemChange{Path: path, Kind: kind[k]})
		}
		return nil
	}
	return list, r.diff(r.in(ctx), id, add)
}

// diff walks what a container's writable layer changes, in path order.
func (r *Runtime) diff(ctx context.Context, id string, f fs.ChangeFunc) error {
	if err := validID(id); err != nil {
		return err
	}
	mounts, err := r.layers.mounts(ctx, id)
	if err != nil {
		return err
	}
	from, err := r.layers.origin(ctx, id)
	if err != nil {
		return err
	}
	if from.chain == "" {
		return r.walkUpper(ctx, mounts, "", f)
	}
	lower, release, err := r.viewOf(ctx, from.chain)
	if err != nil {
		return err
	}
	err = r.walkUpper(ctx, mounts, lower, f)
	if e := release(); err == nil {
		err = e
	}
	return err
}

// walkUpper compares the layer with what is below it ("": nothing).
func (r *Runtime) walkUpper(ctx context.Context, mounts []mount.Mount, lower string, f fs.ChangeFunc) error {
	if upper := upperOf(mounts); upper != "" && lower != "" {
		return fs.DiffDirChanges(ctx, lower, upper, fs.DiffSourceOverlayFS, f)
	}
	dir, release, err := r.mountAt(mounts)
	if err != nil {
		return err
	}
	err = fs.Changes(ctx, lower, dir, f)
	if e := release(); err == nil {
		err = e
	}
	return err
}

func upperOf(mounts []mount.Mount) string {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return ""
	}
	for _, o := range mounts[0].Options {
		if len(o) > 9 && o[:9] == "upperdir=" {
			return o[9:]
		}
	}
	return ""
}

// viewOf mounts the layers of a chain read-only.
func (r *Runtime) viewOf(ctx context.Context, chain string) (string, func() error, error) {
	mounts, done, err := r.layers.lowerMounts(ctx, chain)
	if err != nil {
		return "", nil, err
	}
	dir, release, err := r.mountAt(mounts)
	if err != nil {
		done()
		return "", nil, err
	}
	return dir, func() error { defer done(); return release() }, nil
}

// Usage implements engine.Runtime.
func (r *Runtime) Usage(ctx context.Context, id string) (int64, error) {
	if err := validID(id); err != nil {
		return 0, err
	}
	ctx = r.in(ctx)
	if !r.layers.overlay {
		u, err := r.st.snapshots.Usage(ctx, rwPrefix+id)
		return u.Size, classify(err, "containerd: size of container %s", id)
	}
	if _, err := r.layers.origin(ctx, id); err != nil {
		return 0, err
	}
	u, err := fs.DiskUsage(ctx, filepath.Join(r.layers.dir, id, "fs"))
	return u.Size, err
}
