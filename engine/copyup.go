package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	archive "github.com/moby/go-archive"
)

// copyUp fills new volumes with what the image has at their place.
func (c *ctr) copyUp(ctx context.Context, list []mountPoint) (err error) {
	path, release, err := c.e.cfg.Runtime.Mount(ctx, c.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	for i := range list {
		m := &list[i]
		source, err := resolveIn(path, m.Destination)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		info, err := os.Stat(source)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			continue
		}
		if err != nil {
			return err
		}
		if err := copyTree(source, m.Source); err != nil {
			return fmt.Errorf("engine: copy the image's %s to volume %s: %w", m.Destination, m.Name, err)
		}
	}
	return nil
}

// copyTree copies a folder's content, and its owner and mode, keeping links,
// owners, times and extended attributes.
func copyTree(from, to string) error {
	r, err := archive.TarWithOptions(from, &archive.TarOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := archive.Untar(r, to, &archive.TarOptions{}); err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	uid, gid := owner(info)
	return errors.Join(os.Chown(to, uid, gid), os.Chmod(to, info.Mode()))
}
