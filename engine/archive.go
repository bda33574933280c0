package engine

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/go-archive/compression"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/symlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// resolveIn resolves name below root as a process whose root that is would:
// links, absolute ones too, never lead out.
func resolveIn(root, name string) (string, error) {
	return symlink.FollowSymlinkInScope(filepath.Join(root, filepath.Clean("/"+name)), root)
}

// place is where a path of a container is on the host. All access goes through
// dir, an open folder: what a process in the container does to links meanwhile
// can't lead elsewhere.
type place struct {
	dir  *os.Root
	file *os.File // of dir
	base string   // in dir; "." for dir itself
	path string   // host path, for links' targets
	root string
	own  mountPoint // the mount it is in; zero: none
}

func (p *place) close() {
	_ = p.file.Close()
	_ = p.dir.Close()
}

// host is a path to the open folder that no renaming changes.
func (p *place) host() string { return "/proc/self/fd/" + strconv.Itoa(int(p.file.Fd())) + "/." }

// at opens the place of a path in a container. follow resolves a last link.
func (c *ctr) at(ctx context.Context, name string, follow bool, f func(*place) error) (err error) {
	root, release, err := c.e.cfg.Runtime.Mount(ctx, c.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	name = path.Clean("/" + name)
	var own mountPoint
	base := root
	// Volumes and binds are not mounted in root: find the innermost.
	for _, m := range c.snapshot().Mounts {
		if m.Type != mount.TypeVolume && m.Type != mount.TypeBind {
			continue
		}
		if (name == m.Destination || strings.HasPrefix(name, m.Destination+"/")) && len(m.Destination) > len(own.Destination) {
			own = m
		}
	}
	if own.Destination != "" {
		base, name = own.Source, path.Clean("/"+strings.TrimPrefix(name, own.Destination))
		if info, err := os.Stat(base); err == nil && !info.IsDir() { // a bound file
			base, name = filepath.Dir(own.Source), "/"+filepath.Base(own.Source)
		}
	}
	if file := ownFile(name); own.Destination == "" && file != "" {
		if info, err := os.Lstat(filepath.Join(c.dir, file)); err == nil && info.Mode().IsRegular() {
			base, name = c.dir, "/"+file
		}
	}
	p, err := openPlace(base, name, follow)
	if err != nil {
		return err
	}
	defer p.close()
	p.own = own
	return f(p)
}

// ownFile is the file in a container's folder that it sees at name; "" for none.
func ownFile(name string) string {
	return map[string]string{"/etc/hostname": hostnameFile, "/etc/hosts": hostsFile, "/etc/resolv.conf": resolvFile}[name]
}

func openPlace(root, name string, follow bool) (_ *place, err error) {
	dir, base := path.Split(name)
	if follow {
		resolved, err := resolveIn(root, name)
		if err != nil {
			return nil, err
		}
		rel := "/" + strings.TrimPrefix(strings.TrimPrefix(resolved, root), "/")
		dir, base = path.Split(path.Clean(rel))
	}
	if base == "" {
		dir, base = "/", "."
	}
	parent, err := resolveIn(root, dir)
	if err != nil {
		return nil, err
	}
	top, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer top.Close()
	rel := strings.TrimPrefix(strings.TrimPrefix(parent, root), "/")
	if rel == "" {
		rel = "."
	}
	p := &place{base: base, path: filepath.Join(parent, base), root: root}
	if p.dir, err = top.OpenRoot(rel); err != nil {
		return nil, err
	}
	if p.file, err = p.dir.Open("."); err != nil {
		return nil, errors.Join(err, p.dir.Close())
	}
	return p, nil
}

func notThere(name, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return api.Errorf(api.NotFound, "Could not find the file %s in container %s", path, name)
	}
	return err
}

func (p *place) stat(name string) (*container.PathStat, fs.FileInfo, error) {
	info, err := p.dir.Lstat(p.base)
	if err != nil {
		return nil, nil, err
	}
	st := &container.PathStat{Name: path.Base(path.Clean("/" + name)), Size: info.Size(), Mode: info.Mode(), Mtime: info.ModTime()}
	if info.Mode()&fs.ModeSymlink != 0 {
		resolved, err := symlink.FollowSymlinkInScope(p.path, p.root)
		if err != nil {
			return nil, nil, err
		}
		st.LinkTarget = path.Join("/", p.own.Destination, strings.TrimPrefix(resolved, p.root))
	}
	return st, info, nil
}

// ContainerStatPath describes a file of a container, running or not.
func (e *Engine) ContainerStatPath(ctx context.Context, name, file string) (st *container.PathStat, err error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	err = c.at(ctx, file, asDir(file), func(p *place) error {
		st, _, err = p.stat(file)
		return err
	})
	return st, notThere(name, file, err)
}

// asDir reports whether a path says that it means a folder: links are followed.
func asDir(file string) bool { return strings.HasSuffix(file, "/") || strings.HasSuffix(file, "/.") }

// ContainerArchive writes a file or folder as a tar archive; stat is called
// before the first byte.
func (e *Engine) ContainerArchive(ctx context.Context, name, file string, w io.Writer, stat func(*container.PathStat)) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	err = c.at(ctx, file, asDir(file), func(p *place) error {
		st, _, err := p.stat(file)
		if err != nil {
			return err
		}
		stat(st)
		// The entry is called as it was asked for: "." keeps a folder's content
		// without its name.
		to := path.Base(path.Clean("/" + file))
		if to == "/" || strings.HasSuffix(file, "/.") {
			to = "."
			if st.Name == "/" {
				to = "/"
			}
		}
		opts := archive.TarResourceRebaseOpts(p.base, to)
		if p.base == "." {
			opts = &archive.TarOptions{Compression: compression.None, IncludeFiles: []string{"."}, IncludeSourceDir: true}
		}
		r, err := archive.TarWithOptions(p.host(), opts)
		if err != nil {
			return err
		}
		return copyContext(ctx, w, r)
	})
	if err == nil {
		c.event("archive-path", nil)
	}
	return notThere(name, file, err)
}

// copyContext copies until ctx ends, and closes r.
func copyContext(ctx context.Context, w io.Writer, r io.ReadCloser) error {
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer func() {
		if stop() {
			_ = r.Close()
		}
	}()
	_, err := io.Copy(w, r)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// ContainerExtract unpacks a tar archive, compressed or not, in a folder of a
// container.
func (e *Engine) ContainerExtract(ctx context.Context, name, dir string, r io.Reader, noOverwriteDirNonDir, copyUIDGID bool) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	rec := c.snapshot()
	err = c.at(ctx, dir, true, func(p *place) error {
		info, err := p.dir.Stat(p.base)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return api.Errorf(api.Invalid, "extraction point is not a directory: %s", dir)
		}
		if p.own.Destination != "" && !p.own.RW || p.own.Destination == "" && rec.Host.ReadonlyRootfs {
			what := "rootfs"
			if p.own.Destination != "" {
				what = "volume"
			}
			return api.Errorf(api.Invalid, "container %s is marked read-only", what)
		}
		target, err := p.dir.Open(p.base)
		if err != nil {
			return err
		}
		defer target.Close() //nolint:errcheck // nothing was written
		opts := &archive.TarOptions{NoOverwriteDirNonDir: noOverwriteDirNonDir}
		if copyUIDGID {
			u, _, err := c.resolveUser(ctx, &rec, rec.Config.User, nil)
			if err != nil {
				return err
			}
			opts.ChownOpts = &archive.ChownOpts{UID: int(u.UID), GID: int(u.GID)}
		}
		c.mu.Lock()
		c.touched = true
		c.mu.Unlock()
		err = archive.Untar(contextReader{ctx, r}, filepath.Join("/proc/self/fd", strconv.Itoa(int(target.Fd()))), opts)
		if err != nil && ctx.Err() == nil && !slices.Contains([]api.Class{api.NotFound, api.Conflict}, api.ClassOf(err)) {
			return api.Errorf(api.Invalid, "unpack in %s: %w", dir, err)
		}
		return err
	})
	if err == nil {
		c.event("extract-to-dir", nil)
	}
	return notThere(name, dir, err)
}

// contextReader fails when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// ContainerExport writes the whole root file system as a tar archive.
func (e *Engine) ContainerExport(ctx context.Context, name string, w io.Writer) (err error) {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	root, release, err := e.cfg.Runtime.Mount(ctx, c.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	r, err := archive.TarWithOptions(root, &archive.TarOptions{Compression: compression.None})
	if err != nil {
		return err
	}
	if err := copyContext(ctx, w, r); err != nil {
		return err
	}
	c.event("export", nil)
	return nil
}

// ContainerChanges lists what differs from the image.
func (e *Engine) ContainerChanges(ctx context.Context, name string) ([]container.FilesystemChange, error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	return e.cfg.Runtime.Changes(ctx, c.id)
}
