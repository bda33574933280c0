package linux

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the programs
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// balancerObject is bpf/balancer.c, compiled by scripts/build-bpf.
//
//go:embed bpf/balancer.o
var balancerObject []byte

const (
	// balancerMeaning is counted up when entries of maps mean something else though
	// their sizes are the same.
	balancerMeaning = "1"
	// versionPin is a link to nowhere, named after the programs that are attached.
	versionPin = "version"
	// constants is the map that constants are in, which belongs to a load.
	constants = ".rodata"
)

// ebpfPlaces are where programs are attached and pinned.
type ebpfPlaces struct {
	pins   string // a folder of its own; empty: no eBPF
	cgroup string // empty: where cgroup2 is mounted
}

// cgroup2 finds the root of the node's cgroups of version 2.
func (e ebpfPlaces) cgroup2() (string, error) {
	if e.cgroup != "" {
		return e.cgroup, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("look for cgroup2: %w", err)
	}
	if len(mounts) == 0 {
		return "", errors.New("cgroup2 is not mounted on this host")
	}
	for _, usual := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.Mountpoint == usual }) {
			return usual, nil
		}
	}
	return mounts[0].Mountpoint, nil
}

// pinned reports whether an earlier daemon may have left pins.
func (e ebpfPlaces) pinned() bool {
	var s unix.Statfs_t
	return e.pins != "" && unix.Statfs(e.pins, &s) == nil && s.Type == unix.BPF_FS_MAGIC
}

func (e ebpfPlaces) mount() error {
	if e.pinned() {
		return nil
	}
	if err := os.MkdirAll(e.pins, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", e.pins, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount a bpf file system at %s: %w", e.pins, err)
	}
	return nil
}

// erase removes all pins; what nobody has open goes with them.
func (e ebpfPlaces) erase() error {
	if !e.pinned() {
		return nil
	}
	entries, err := os.ReadDir(e.pins)
	if err != nil {
		return fmt.Errorf("list pinned programs: %w", err)
	}
	for _, f := range entries {
		if !f.IsDir() {
			continue // the kernel's own, in every such file system
		}
		if err := os.RemoveAll(filepath.Join(e.pins, f.Name())); err != nil {
			return fmt.Errorf("remove pinned programs: %w", err)
		}
	}
	if err := unix.Unmount(e.pins, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", e.pins, err)
	}
	if err := os.Remove(e.pins); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// probe tries whether programs can be loaded and attached; nil: they can.
func (e ebpfPlaces) probe() error {
	if e.pins == "" {
		return errors.New("no folder to pin programs in is configured")
	}
	if e.pinned() {
		return nil
	}
	spec, err := balancerSpec()
	if err != nil {
		return err
	}
	c, err := loadPrograms(spec, "")
	if err != nil {
		return err
	}
	defer c.Close()
	for name, prog := range c.Programs {
		l, err := e.attach(prog, spec.Programs[name].AttachType)
		if err != nil {
			return err
		}
		_ = l.Close()
	}
	return nil
}

func (e ebpfPlaces) attach(prog *ebpf.Program, at ebpf.AttachType) (*link.RawLink, error) {
	path, err := e.cgroup2()
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: at})
	if err != nil {
		return nil, fmt.Errorf("attach a program to %s: %w", path, err)
	}
	return l, nil
}

// attached reports whether a link leads to the cgroup.
func (e ebpfPlaces) attached(l link.Link) bool {
	path, err := e.cgroup2()
	if err != nil {
		return false
	}
	var s unix.Stat_t
	if unix.Stat(path, &s) != nil {
		return false
	}
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == s.Ino
}

func balancerSpec() (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(balancerObject))
	if err != nil {
		return nil, fmt.Errorf("read the balancer's programs: %w", err)
	}
	for name, m := range spec.Maps {
		if name != constants {
			m.Pinning = ebpf.PinByName
		}
	}
	return spec, nil
}

// layout names the shape of the maps: programs of one layout work on the maps of
// each other.
func layout(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	_, _ = fmt.Fprintln(h, balancerMeaning)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if m := spec.Maps[name]; name != constants {
			_, _ = fmt.Fprintln(h, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		}
	}
	return "maps-" + hex.EncodeToString(h.Sum(nil)[:8])
}

// loadPrograms loads the programs, with the maps pinned in a folder, or new ones
// that are pinned there. dir may be empty: nothing is pinned.
func loadPrograms(spec *ebpf.CollectionSpec, dir string) (*ebpf.Collection, error) {
	_ = rlimit.RemoveMemlock() // only old kernels need it, and say so when they load
	s := spec.Copy()
	if dir == "" {
		for _, m := range s.Maps {
			m.Pinning = ebpf.PinNone
		}
	}
	c, err := ebpf.NewCollectionWithOptions(s, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		// Before Linux 5.18 programs can't choose the error: connect says EPERM.
		if err := s.Variables["refusal"].Set(int32(0)); err != nil {
			return nil, err
		}
		c, err = ebpf.NewCollectionWithOptions(s, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}})
	}
	if err != nil {
		return nil, fmt.Errorf("load the balancer's programs: %w", err)
	}
	return c, nil
}

// ebpfBalancer is the driver for BalancerEBPF.
type ebpfBalancer struct {
	p      *Plane
	places ebpfPlaces
	dir    string
	names  []string // of programs
	maps   map[string]*ebpf.Map
	links  map[string]link.Link
	tables *balancerTables
}

// openEBPF adopts the programs that are pinned, or attaches its own. Where
// programs of another version are attached, they are replaced one by one, each
// at once; what is in the maps stays.
func openEBPF(p *Plane, places ebpfPlaces) (_ *ebpfBalancer, err error) {
	b := &ebpfBalancer{p: p, places: places, maps: map[string]*ebpf.Map{}, links: map[string]link.Link{}, tables: newBalancerTables()}
	defer func() {
		if err != nil {
			_ = b.close()
		}
	}()
	spec, err := balancerSpec()
	if err != nil {
		return nil, err
	}
	if err := places.mount(); err != nil {
		return nil, err
	}
	b.dir = filepath.Join(places.pins, layout(spec))
	b.names = slices.Sorted(maps.Keys(spec.Programs))
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(balancerObject)
	version := hex.EncodeToString(sum[:])
	if now, err := os.Readlink(filepath.Join(b.dir, versionPin)); err == nil && now == version && b.adopt(spec) {
		return b, nil
	}
	if err := b.attach(spec); err != nil {
		return nil, err
	}
	next := filepath.Join(b.dir, versionPin+"-next") // no name there has a dot
	_ = os.Remove(next)                              // of one that was killed
	if err := os.Symlink(version, next); err != nil {
		return nil, err
	}
	return b, os.Rename(next, filepath.Join(b.dir, versionPin))
}

// adopt opens what is pinned, and reports whether it is all there.
func (b *ebpfBalancer) adopt(spec *ebpf.CollectionSpec) bool {
	for name := range spec.Maps {
		if name == constants {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(b.dir, name), nil)
		if err != nil {
			return false
		}
		b.keep(name, m)
	}
	for _, name := range b.names {
		l, err := link.LoadPinnedLink(filepath.Join(b.dir, name), nil)
		if err != nil {
			return false
		}
		b.links[name] = l
	}
	return b.intact()
}

func (b *ebpfBalancer) keep(name string, m *ebpf.Map) {
	if old := b.maps[name]; old != nil {
		_ = old.Close()
	}
	b.maps[name] = m
}

// intact reports whether the programs are attached, and pinned with their maps.
func (b *ebpfBalancer) intact() bool {
	for name := range b.maps {
		if _, err := os.Lstat(filepath.Join(b.dir, name)); err != nil {
			return false
		}
	}
	for _, name := range b.names {
		if _, err := os.Lstat(filepath.Join(b.dir, name)); err != nil || b.links[name] == nil || !b.places.attached(b.links[name]) {
			return false
		}
	}
	return true
}

// attach loads the programs and puts each in the place of the one that is
// attached.
func (b *ebpfBalancer) attach(spec *ebpf.CollectionSpec) error {
	c, err := loadPrograms(spec, b.dir)
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		if err := os.RemoveAll(b.dir); err != nil {
			return err
		}
		if err := os.Mkdir(b.dir, 0o700); err != nil {
			return err
		}
		c, err = loadPrograms(spec, b.dir)
	}
	if err != nil {
		return err
	}
	defer c.Close() // the links have the programs
	for name, prog := range c.Programs {
		if err := b.replace(name, prog, spec.Programs[name].AttachType); err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
	}
	for name, m := range c.Maps {
		if name != constants {
			delete(c.Maps, name) // ours from here on
			b.keep(name, m)
		}
	}
	return nil
}

func (b *ebpfBalancer) replace(name string, prog *ebpf.Program, at ebpf.AttachType) error {
	path := filepath.Join(b.dir, name)
	old := b.links[name]
	if old != nil {
		_ = old.Close()
		delete(b.links, name)
	}
	if l, err := link.LoadPinnedLink(path, nil); err == nil {
		if b.places.attached(l) && l.Update(prog) == nil {
			b.links[name] = l
			return nil
		}
		_ = l.Close()
	}
	l, err := b.places.attach(prog, at)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // the pin holds it
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := l.Pin(path); err != nil {
		return err
	}
	b.links[name], err = link.LoadPinnedLink(path, nil) // which can be asked more
	return err
}

// tidy removes maps and programs of other layouts, once ours are filled.
func (b *ebpfBalancer) tidy() error {
	entries, err := os.ReadDir(b.places.pins)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "maps-") && e.Name() != filepath.Base(b.dir) {
			if err := os.RemoveAll(filepath.Join(b.places.pins, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *ebpfBalancer) close() error {
	var errs []error
	for _, l := range b.links {
		errs = append(errs, l.Close())
	}
	for _, m := range b.maps {
		errs = append(errs, m.Close())
	}
	clear(b.links)
	clear(b.maps)
	return errors.Join(errs...)
}

func (b *ebpfBalancer) remove([]*vipBox) error { return errors.Join(b.close(), b.places.erase()) }
