package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

// labelAnonymous marks volumes that got their name from us, as Docker does.
const labelAnonymous = "com.docker.volume.anonymous"

// volumeRecord is a volume, as it is written down.
type volumeRecord struct {
	Name    string
	Created time.Time
	Labels  map[string]string
	Options map[string]string
}

// vol is a volume and who uses it.
type vol struct {
	volumeRecord
	users   map[string]struct{} // containers that name it
	mounted map[string]struct{} // containers that run with it
	busy    sync.Mutex          // one mount or unmount at a time
}

// volumes is the local volume driver. Each volume is a folder with its record
// and _data, on which what the options name is mounted while it is used.
type volumes struct {
	mu  sync.Mutex
	all map[string]*vol

	dir string
	now func() time.Time
}

const (
	volumeFile = "volume.json"
	volumeData = "_data"
)

func openVolumes(dir string, now func() time.Time) (*volumes, error) {
	vs := &volumes{all: make(map[string]*vol), dir: dir, now: now}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("engine: volumes: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		b, err := os.ReadFile(filepath.Join(path, volumeFile))
		var r volumeRecord
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		switch {
		case err == nil && r.Name == e.Name():
			vs.all[r.Name] = newVolume(r)
		case errors.Is(err, fs.ErrNotExist):
			// Cut off while it was made or removed: the record goes in last and
			// out first.
			if mounted, merr := mountinfo.Mounted(filepath.Join(path, volumeData)); merr == nil && !mounted {
				if err := os.RemoveAll(path); err != nil {
					return nil, fmt.Errorf("engine: volume %s is half-made: %w", e.Name(), err)
				}
			}
		default:
			return nil, fmt.Errorf("engine: volume %s: %s is damaged (%v); mend it, or remove the folder to lose the volume", e.Name(), filepath.Join(path, volumeFile), err)
		}
	}
	return vs, nil
}

func newVolume(r volumeRecord) *vol {
	return &vol{volumeRecord: r, users: make(map[string]struct{}), mounted: make(map[string]struct{})}
}

func checkVolumeName(name string) error {
	if len(name) == 1 && validName(name+name) {
		return api.Errorf(api.Invalid, "volume name is too short, names should be at least two alphanumeric characters")
	}
	if !validName(name) {
		return api.Errorf(api.Invalid, "%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name)
	}
	if len(name) > 255 {
		return api.Errorf(api.Invalid, "volume name is longer than 255 characters")
	}
	return nil
}

func checkVolumeOptions(opts map[string]string) error {
	for k := range opts {
		switch k {
		case "type", "o", "device":
		case "size":
			return api.Errorf(api.Invalid, "quota size requested but no quota support")
		default:
			return api.Errorf(api.Invalid, "invalid option: %q (known are type, o, device)", k)
		}
	}
	if len(opts) == 0 {
		return nil
	}
	if opts["o"] != "" || opts["device"] != "" || opts["type"] != "" {
		for _, k := range []string{"type", "device"} {
			if opts[k] == "" && (k == "device" || !strings.Contains(","+opts["o"]+",", "bind,")) {
				return api.Errorf(api.Invalid, "missing required option: %q", k)
			}
		}
	}
	return nil
}

// create makes a volume, or returns the one that is there if it has the same
// options. fresh tells which.
func (vs *volumes) create(name, driver string, opts, labels map[string]string) (v *vol, fresh bool, err error) {
	if driver != "" && driver != localDriver {
		return nil, false, api.Errorf(api.NotFound, "error looking up volume plugin %s: plugin %q not found (only the driver local is there)", driver, driver)
	}
	if name == "" {
		name = newID()
		labels = maps.Clone(labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[labelAnonymous] = ""
	} else if err := checkVolumeName(name); err != nil {
		return nil, false, err
	}
	if err := checkVolumeOptions(opts); err != nil {
		return nil, false, err
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.all[name]; v != nil {
		if len(opts) > 0 && !maps.Equal(opts, v.Options) {
			return nil, false, api.Errorf(api.Exists, "volume %q already exists with other options; remove it first, or use another name", name)
		}
		return v, false, nil
	}
	v = newVolume(volumeRecord{Name: name, Created: vs.now().UTC(), Labels: labels, Options: opts})
	if err := vs.write(v); err != nil {
		return nil, false, err
	}
	vs.all[name] = v
	return v, true, nil
}

// write makes the folder. A new volume's is small and made once: mu is held so
// that two requests for a name do not meet.
func (vs *volumes) write(v *vol) (err error) {
	dir := filepath.Join(vs.dir, v.Name)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("engine: volume %s: %w", v.Name, err), os.RemoveAll(dir))
		}
	}()
	if err := os.Mkdir(dir, 0o701); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, volumeData), 0o755); err != nil {
		return err
	}
	b, err := json.Marshal(&v.volumeRecord)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "."+volumeFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	// A named volume's data must be found again after a power failure.
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, volumeFile))
}

func (vs *volumes) get(name string) (*vol, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.all[name]; v != nil {
		return v, nil
	}
	return nil, api.Errorf(api.NotFound, "get %s: no such volume", name)
}

func (vs *volumes) path(name string) string { return filepath.Join(vs.dir, name, volumeData) }

// use notes that a container names the volume.
func (vs *volumes) use(name, container string) error {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v := vs.all[name]
	if v == nil {
		return api.Errorf(api.NotFound, "get %s: no such volume", name)
	}
	v.users[container] = struct{}{}
	return nil
}

func (vs *volumes) unuse(name, container string) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if v := vs.all[name]; v != nil {
		delete(v.users, container)
	}
}

// remove deletes a volume that nobody uses.
func (vs *volumes) remove(name string) error {
	vs.mu.Lock()
	v := vs.all[name]
	if v == nil {
		vs.mu.Unlock()
		return api.Errorf(api.NotFound, "get %s: no such volume", name)
	}
	for user := range v.users {
		vs.mu.Unlock()
		return api.Errorf(api.Conflict, "remove %s: volume is in use - [%s]", name, user)
	}
	delete(vs.all, name)
	vs.mu.Unlock()
	dir := filepath.Join(vs.dir, name)
	err := os.Remove(filepath.Join(dir, volumeFile))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		if mounted, merr := mountinfo.Mounted(filepath.Join(dir, volumeData)); merr == nil && mounted {
			err = unix.Unmount(filepath.Join(dir, volumeData), unix.MNT_DETACH)
		} else {
			err = merr
		}
		if err == nil { // never RemoveAll through a mount: it would delete what is not ours
			err = os.RemoveAll(dir)
		}
	}
	if err != nil {
		vs.mu.Lock()
		if vs.all[name] == nil {
			vs.all[name] = v
		}
		vs.mu.Unlock()
		return fmt.Errorf("engine: remove volume %s: %w", name, err)
	}
	return nil
}

// mount makes the volume's data available at its path while the container
// runs; undo gives it back.
func (vs *volumes) mount(ctx context.Context, name, container string) (string, error) {
	v, err := vs.get(name)
	if err != nil {
		return "", err
	}
	path := vs.path(name)
	v.busy.Lock()
	defer v.busy.Unlock()
	if len(v.Options) > 0 {
		mounted, err := mountinfo.Mounted(path)
		if err != nil {
			return "", fmt.Errorf("engine: volume %s: %w", name, err)
		}
		if !mounted {
			if err := mountOptions(ctx, v.Options, path); err != nil {
				return "", api.Errorf(api.Invalid, "error while mounting volume '%s': %w", path, err)
			}
		}
	}
	vs.mu.Lock()
	v.mounted[container] = struct{}{}
	vs.mu.Unlock()
	return path, nil
}

func (vs *volumes) unmount(name, container string, log *slog.Logger) {
	v, err := vs.get(name)
	if err != nil {
		return
	}
	v.busy.Lock()
	defer v.busy.Unlock()
	vs.mu.Lock()
	delete(v.mounted, container)
	last := len(v.mounted) == 0
	vs.mu.Unlock()
	if !last || len(v.Options) == 0 {
		return
	}
	if err := mount.Unmount(vs.path(name)); err != nil {
		log.Warn("a volume could not be unmounted", "volume", name, "error", err)
	}
}

// unmountStale undoes a mount that an earlier daemon left.
func (vs *volumes) unmountStale(v *vol, log *slog.Logger) {
	path := vs.path(v.Name)
	if mounted, err := mountinfo.Mounted(path); err != nil || !mounted {
		return
	}
	if err := mount.Unmount(path); err != nil {
		log.Warn("a volume could not be unmounted", "volume", v.Name, "error", err)
	}
}

// mountOptions mounts what the options type, o and device say.
func mountOptions(ctx context.Context, opts map[string]string, target string) error {
	o := opts["o"]
	kind := opts["type"]
	if kind == "none" || kind == "" {
		kind = "bind"
	}
	if strings.HasPrefix(kind, "nfs") || kind == "cifs" {
		var err error
		if o, err = resolveAddr(ctx, o); err != nil {
			return err
		}
	}
	if strings.Contains(","+o+",", "bind,") {
		if _, err := os.Stat(opts["device"]); err != nil {
			return fmt.Errorf("failed to mount local volume: mount %s:%s: %w", opts["device"], target, err)
		}
	}
	if err := mount.Mount(opts["device"], target, kind, o); err != nil {
		return fmt.Errorf("failed to mount local volume: %w", err)
	}
	return nil
}

// resolveAddr replaces a host name in addr=: the kernel wants an address.
func resolveAddr(ctx context.Context, o string) (string, error) {
	list := strings.Split(o, ",")
	for i, s := range list {
		host, ok := strings.CutPrefix(s, "addr=")
		if !ok || host == "" || net.ParseIP(host) != nil {
			continue
		}
		ips, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			return "", fmt.Errorf("resolve addr=%s: %w", host, err)
		}
		list[i] = "addr=" + ips[0]
	}
	return strings.Join(list, ","), nil
}
