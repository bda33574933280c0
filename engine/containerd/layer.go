package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

const (
	labelRoot  = "containerd.io/gc.root"
	basePrefix = "legion-base-" // snapshot key of an image's read-only view
	rwPrefix   = "legion-rw-"   // snapshot key of a container's layer, without overlayfs
)

// layers are containers' writable layers. With overlayfs they are plain
// folders of ours above the image's snapshot: no database transaction and no
// garbage collection for each container, two mkdirs instead. An image's layers
// are held by one view for all its containers, so they outlive the image's
// removal as long as a container needs them. With any other snapshotter a
// layer is a snapshot.
type layers struct {
	mu    sync.Mutex
	bases map[string]*base // by chain id; overlayfs only

	dir     string // a folder a container: fs, work, parent
	overlay bool
	st      *storage
	options []string // of each overlay mount
}

// base is the read-only view of an image that containers stand on.
type base struct {
	refs    int
	gone    chan struct{} // closed when a removal under way is over; nil: none is
	once    sync.Once
	lower   []string // top first
	options []string
	err     error
}

func openLayers(ctx context.Context, root string, st *storage) (*layers, error) {
	l := &layers{
		bases:   make(map[string]*base),
		dir:     filepath.Join(root, "rw"),
		overlay: st.name == "overlayfs",
		st:      st,
	}
	if err := os.MkdirAll(l.dir, 0o711); err != nil {
		return nil, err
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		l.options = []string{"index=off"}
	}
	if err := removeDoomed(l.dir); err != nil {
		return nil, err
	}
	ids, err := names(l.dir)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if o, err := l.origin(ctx, id); err == nil && o.chain != "" {
			l.ref(o.chain)
		}
	}
	return l, nil
}

// origin is what a container's layer was made from.
type origin struct{ chain, image, platform string }

const (
	labelImage    = "legion.image"
	labelPlatform = "legion.platform"
)

// origin of the layer of id; NotFound when there is no layer.
func (l *layers) origin(ctx context.Context, id string) (origin, error) {
	if !l.overlay {
		info, err := l.st.snapshots.Stat(ctx, rwPrefix+id)
		return origin{info.Parent, info.Labels[labelImage], info.Labels[labelPlatform]}, classify(err, "containerd: writable layer of %s", id)
	}
	b, err := os.ReadFile(filepath.Join(l.dir, id, "parent"))
	if errors.Is(err, fs.ErrNotExist) {
		return origin{}, api.Errorf(api.NotFound, "containerd: container %s has no root file system", id)
	}
	f := strings.Split(string(b), "\n")
	if err == nil && len(f) != 3 {
		err = fmt.Errorf("containerd: container %s: %s/parent is malformed; remove the container", id, filepath.Join(l.dir, id))
	}
	if err != nil {
		return origin{}, err
	}
	return origin{f[0], f[1], f[2]}, nil
}

// ref counts a user of the chain's view and returns it.
func (l *layers) ref(chain string) *base {
	for {
		l.mu.Lock()
		b := l.bases[chain]
		if b == nil {
			b = &base{}
			l.bases[chain] = b
		}
		gone := b.gone
		if gone == nil {
			b.refs++
			l.mu.Unlock()
			return b
		}
		l.mu.Unlock()
		<-gone
	}
}

func (l *layers) unref(chain string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.bases[chain]; b != nil {
		b.refs--
	}
}

// view makes sure that the chain's read-only view exists, and reads where its
// layers are.
func (l *layers) view(ctx context.Context, chain string, b *base) error {
	b.once.Do(func() {
		key := basePrefix + chain
		mounts, err := l.st.snapshots.View(ctx, key, chain, snapshots.WithLabels(map[string]string{labelRoot: "legion"}))
		if errdefs.IsAlreadyExists(err) {
			mounts, err = l.st.snapshots.Mounts(ctx, key)
		}
		if err != nil {
			b.err = classify(err, "containerd: view of image layers %s", chain)
			return
		}
		b.lower, b.options, b.err = lowerOf(mounts)
	})
	if b.err != nil {
		l.mu.Lock()
		if l.bases[chain] == b { // the next one tries again
			l.bases[chain] = &base{refs: b.refs}
		}
		l.mu.Unlock()
	}
	return b.err
}

func lowerOf(mounts []mount.Mount) (lower, options []string, err error) {
	if len(mounts) != 1 {
		return nil, nil, fmt.Errorf("containerd: a view of %d mounts is not an overlay", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" {
		return []string{m.Source}, nil, nil
	}
	for _, o := range m.Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(dirs, ":")
		} else if o != "ro" {
			options = append(options, o)
		}
	}
	if m.Type != "overlay" || len(lower) == 0 {
		return nil, nil, fmt.Errorf("containerd: a %s mount is not an overlay", m.Type)
	}
	return lower, options, nil
}

// prepare makes the writable layer of id above from.chain ("": an empty root),
// or takes the one that is there when reuse is set, and returns its mounts.
func (l *layers) prepare(ctx context.Context, id string, from origin, reuse bool, size int64) ([]mount.Mount, error) {
	if size != 0 {
		return nil, api.Errorf(api.Invalid, "containerd: container %s: the %s snapshotter cannot limit the size of a writable layer; leave the storage option size out", id, l.st.name)
	}
	if reuse {
		m, err := l.mounts(ctx, id)
		if err == nil || !api.Is(err, api.NotFound) {
			return m, err
		}
	} else if err := l.remove(ctx, id); err != nil {
		return nil, err
	}
	if !l.overlay {
		m, err := l.st.snapshots.Prepare(ctx, rwPrefix+id, from.chain, snapshots.WithLabels(map[string]string{labelRoot: "legion", labelImage: from.image, labelPlatform: from.platform}))
		return m, classify(err, "containerd: writable layer of %s", id)
	}
	var b *base
	if from.chain != "" {
		b = l.ref(from.chain)
		if err := l.view(ctx, from.chain, b); err != nil {
			l.unref(from.chain)
			return nil, err
		}
	}
	if err := l.make(id, from, b); err != nil {
		err = errors.Join(err, os.RemoveAll(filepath.Join(l.dir, id)))
		if b != nil {
			l.unref(from.chain)
		}
		return nil, fmt.Errorf("containerd: writable layer of %s: %w", id, err)
	}
	return l.overlayMounts(id, b), nil
}

func (l *layers) make(id string, from origin, b *base) error {
	dir := filepath.Join(l.dir, id)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "parent"), []byte(from.chain+"\n"+from.image+"\n"+from.platform), 0o600); err != nil {
		return err
	}
	upper := filepath.Join(dir, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
		return err
	}
	if b == nil {
		return nil
	}
	// The root folder of an overlay has the owner and mode of the upper one.
	info, err := os.Stat(b.lower[0])
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && (st.Uid != 0 || st.Gid != 0) {
		if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	return os.Chmod(upper, info.Mode())
}

// mounts of an existing layer; NotFound when there is none.
func (l *layers) mounts(ctx context.Context, id string) ([]mount.Mount, error) {
	if !l.overlay {
		m, err := l.st.snapshots.Mounts(ctx, rwPrefix+id)
		return m, classify(err, "containerd: writable layer of %s", id)
	}
	from, err := l.origin(ctx, id)
	if err != nil {
		return nil, err
	}
	if !exists(filepath.Join(l.dir, id, "work")) { // half-made
		return nil, api.Errorf(api.NotFound, "containerd: container %s has no root file system", id)
	}
	if from.chain == "" {
		return l.overlayMounts(id, nil), nil
	}
	b := l.ref(from.chain)
	defer l.unref(from.chain)
	if err := l.view(ctx, from.chain, b); err != nil {
		return nil, err
	}
	return l.overlayMounts(id, b), nil
}

func (l *layers) overlayMounts(id string, b *base) []mount.Mount {
	dir := filepath.Join(l.dir, id)
	if b == nil {
		return []mount.Mount{{Type: "bind", Source: filepath.Join(dir, "fs"), Options: []string{"rw", "rbind"}}}
	}
	options := append([]string{
		"workdir=" + filepath.Join(dir, "work"),
		"upperdir=" + filepath.Join(dir, "fs"),
		"lowerdir=" + strings.Join(b.lower, ":"),
	}, l.options...)
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

// remove removes the layer of id. Unknown ids are no error.
func (l *layers) remove(ctx context.Context, id string) error {
	if !l.overlay {
		err := l.st.snapshots.Remove(ctx, rwPrefix+id)
		if err != nil && !errdefs.IsNotFound(err) {
			return classify(err, "containerd: remove writable layer of %s", id)
		}
		return nil
	}
	from, _ := l.origin(ctx, id)
	doomed := filepath.Join(l.dir, "."+id)
	if err := os.Rename(filepath.Join(l.dir, id), doomed); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("containerd: remove writable layer of %s: %w", id, err)
	}
	if from.chain != "" {
		l.unref(from.chain)
	}
	if err := removeAll(doomed); err != nil {
		return fmt.Errorf("containerd: remove writable layer of %s: %w", id, err)
	}
	return nil
}

// removeAll is os.RemoveAll, also where a mount or a last file raced with us.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	switch {
	case errors.Is(err, unix.EBUSY):
		if err := mount.UnmountRecursive(dir, unix.MNT_DETACH); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENOTEMPTY):
		return err
	}
	return os.RemoveAll(dir)
}

// sweep removes the views that no container stands on.
func (l *layers) sweep(ctx context.Context) error {
	if !l.overlay {
		return nil
	}
	var idle []string
	err := l.st.snapshots.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if chain, ok := strings.CutPrefix(i.Name, basePrefix); ok {
			idle = append(idle, chain)
		}
		return nil
	})
	for _, chain := range idle {
		l.mu.Lock()
		b := l.bases[chain]
		if b == nil {
			b = &base{}
			l.bases[chain] = b
		}
		if b.refs > 0 || b.gone != nil {
			l.mu.Unlock()
			continue
		}
		b.gone = make(chan struct{})
		l.mu.Unlock()

		if e := l.st.snapshots.Remove(ctx, basePrefix+chain); e != nil && !errdefs.IsNotFound(e) {
			err = errors.Join(err, e)
		}
		l.mu.Lock()
		delete(l.bases, chain)
		close(b.gone)
		l.mu.Unlock()
	}
	return err
}

// lowerMounts are read-only mounts of a chain, held until done is called.
func (l *layers) lowerMounts(ctx context.Context, chain string) (m []mount.Mount, done func(), err error) {
	if !l.overlay {
		key := rwPrefix + "view-" + rand.Text()
		m, err = l.st.snapshots.View(ctx, key, chain, snapshots.WithLabels(map[string]string{labelRoot: "legion"}))
		free := context.WithoutCancel(ctx)
		return m, func() { _ = l.st.snapshots.Remove(free, key) }, classify(err, "containerd: view of %s", chain)
	}
	b := l.ref(chain)
	if err := l.view(ctx, chain, b); err != nil {
		l.unref(chain)
		return nil, nil, err
	}
	done = func() { l.unref(chain) }
	if len(b.lower) == 1 {
		return []mount.Mount{{Type: "bind", Source: b.lower[0], Options: []string{"ro", "rbind"}}}, done, nil
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + strings.Join(b.lower, ":")}}}, done, nil
}
