package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
)

// accounts are an image's /etc/passwd and /etc/group.
type accounts struct{ passwd, group []byte }

// userCache keeps images' accounts, so that a container's start need not mount
// its root file system. Beyond the bound it starts anew.
type userCache struct {
	mu  sync.Mutex
	all map[string]*accounts // by image and platform
}

const (
	maxAccounts     = 256
	maxAccountsFile = 1 << 20
)

func newUserCache() *userCache { return &userCache{all: make(map[string]*accounts)} }

func (u *userCache) get(key string) *accounts {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.all[key]
}

func (u *userCache) put(key string, a *accounts) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.all) >= maxAccounts {
		clear(u.all)
	}
	u.all[key] = a
}

// accountsOf returns the accounts of a container, from the cache when nothing
// can have changed its files.
func (c *ctr) accountsOf(ctx context.Context, r *record) (_ *accounts, err error) {
	key := r.ImageID + " " + r.Platform
	c.mu.Lock()
	fresh := r.StartedAt.IsZero() && !c.touched
	c.mu.Unlock()
	if fresh {
		if a := c.e.users.get(key); a != nil {
			return a, nil
		}
	}
	path, release, err := c.e.cfg.Runtime.Mount(ctx, c.id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, release()) }()
	a := &accounts{}
	if a.passwd, err = readIn(path, "/etc/passwd"); err != nil {
		return nil, err
	}
	if a.group, err = readIn(path, "/etc/group"); err != nil {
		return nil, err
	}
	if fresh {
		c.e.users.put(key, a)
	}
	return a, nil
}

// readIn reads a small file below root; a missing one is empty.
func readIn(root, name string) ([]byte, error) {
	path, err := resolveIn(root, name)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	rel := strings.TrimPrefix(strings.TrimPrefix(path, root), "/")
	info, err := r.Stat(rel)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil
	}
	f, err := r.Open(rel)
	if err != nil {
		return nil, ignoreMissing(err)
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return io.ReadAll(io.LimitReader(f, maxAccountsFile))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// resolveUser turns USER[:GROUP] into ids, as they are in the container.
func (c *ctr) resolveUser(ctx context.Context, r *record, spec string, groups []string) (specs.User, string, error) {
	a, err := c.accountsOf(ctx, r)
	if err != nil {
		return specs.User{}, "", err
	}
	return lookupUser(a, spec, groups)
}

func lookupUser(a *accounts, spec string, groups []string) (specs.User, string, error) {
	u, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, bytes.NewReader(a.passwd), bytes.NewReader(a.group))
	if err != nil {
		return specs.User{}, "", api.Errorf(api.Invalid, "%w", err) // it names the user or the group
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	ids := append([]int{u.Gid}, u.Sgids...)
	if len(groups) > 0 {
		more, err := user.GetAdditionalGroups(groups, bytes.NewReader(a.group))
		if err != nil {
			return specs.User{}, "", api.Errorf(api.Invalid, "%w", err)
		}
		ids = append(ids, more...)
	}
	for _, g := range ids {
		if !slices.Contains(out.AdditionalGids, uint32(g)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(g))
		}
	}
	return out, u.Home, nil
}
