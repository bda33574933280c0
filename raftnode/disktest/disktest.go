// Package disktest keeps files in memory, on disks that fail.
package disktest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/legion-swarm/legion/raftnode/disk"
)

const (
	sector     = 512
	directUnit = 4096 // of files opened with disk.Direct
)

// ErrCrashed is the error of all that is done after Crash, or PowerOffAt.
var ErrCrashed = errors.New("the machine has crashed")

// Disk is a file system in memory that loses, like a disk, what was not synced
// when it crashes: each dirty sector is written or not, each unsynced name is
// the old or the new one. Safe for concurrent use; make one with New.
type Disk struct {
	mu      sync.Mutex
	names   map[string]*file // as processes see them
	durable map[string]*file // as the disk has them
	locks   map[string]bool
	crashed bool
	faults  Faults
	syncs   int
}

// Faults are what is wrong with a disk besides crashes.
type Faults struct {
	// Space is by how many bytes files may still grow or, with CopyOnWrite, be
	// written; negative: no limit.
	Space       int64
	CopyOnWrite bool
	// FailSync is asked for each sync; nil: all succeed.
	FailSync func(name string) error
	// SlowSync is how long each Datasync takes: only in a synctest bubble.
	SlowSync time.Duration
}

type file struct {
	data, synced []byte
	dirty        map[int]bool
}

var _ disk.FS = (*Disk)(nil)

// New returns a disk that is empty and sound.
func New() *Disk {
	return &Disk{names: map[string]*file{}, durable: map[string]*file{}, locks: map[string]bool{}, faults: Faults{Space: -1}}
}

// Break changes what is wrong with the disk.
func (m *Disk) Break(change func(*Faults)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.faults)
}

// Syncs tells how often files were synced.
func (m *Disk) Syncs() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.syncs
}

// Bytes returns what a file has; changing it damages the file. Nil: there is none.
func (m *Disk) Bytes(name string) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.names[name]; f != nil {
		return f.data
	}
	return nil
}

// SetBytes replaces a file by one with these bytes, none of them durable.
func (m *Disk) SetBytes(name string, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names[name] = &file{data: data, dirty: map[int]bool{}}
}

// All iterates over a copy of the list of files, as processes see them.
func (m *Disk) All() iter.Seq2[string, []byte] {
	m.mu.Lock()
	names := maps.Clone(m.names)
	m.mu.Unlock()
	return func(yield func(string, []byte) bool) {
		for name, f := range names {
			if !yield(name, f.data) {
				return
			}
		}
	}
}

// Crash ends the use of m, and returns what is found after the restart.
func (m *Disk) Crash(rng *rand.Rand) *Disk {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	after := New()
	names := maps.Clone(m.durable)
	for name, f := range m.names {
		if m.durable[name] != f && rng.IntN(2) == 0 {
			names[name] = f
		}
	}
	for name := range m.durable {
		if m.names[name] == nil && rng.IntN(2) == 0 {
			delete(names, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		f := names[name]
		data := slices.Clone(f.synced)
		for _, s := range slices.Sorted(maps.Keys(f.dirty)) {
			if rng.IntN(2) == 0 || s*sector >= len(f.data) {
				continue
			}
			end := min((s+1)*sector, len(f.data))
			if end > len(data) {
				data = append(data, make([]byte, end-len(data))...)
			}
			copy(data[s*sector:end], f.data[s*sector:end])
		}
		g := &file{data: data, synced: slices.Clone(data), dirty: map[int]bool{}}
		after.names[name], after.durable[name] = g, g
	}
	return after
}

// Killed ends the use of m, and returns what is found when the process was
// killed but the machine was not: all that was written.
func (m *Disk) Killed() *Disk {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	after := New()
	after.names, after.durable = m.names, m.durable
	return after
}

// PowerOffAt makes the machine stop in the middle of the n-th sync from now.
func (m *Disk) PowerOffAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults.FailSync = func(string) error {
		if n--; n > 0 {
			return nil
		}
		m.crashed = true
		return ErrCrashed
	}
}

// lock refuses once the machine has crashed.
func (m *Disk) lock() (func(), error) {
	m.mu.Lock()
	if m.crashed {
		m.mu.Unlock()
		return nil, ErrCrashed
	}
	return m.mu.Unlock, nil
}

// OpenFile implements disk.FS.
func (m *Disk) OpenFile(name string, flag int, _ fs.FileMode) (disk.File, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	f := m.names[name]
	switch {
	case f == nil && flag&syscall.O_CREAT == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	case f == nil:
		f = &file{dirty: map[int]bool{}}
		m.names[name] = f
	case flag&syscall.O_TRUNC != 0:
		f.data = nil
	}
	return &handle{m: m, f: f, name: name, direct: flag&disk.Direct != 0}, nil
}

// ReadDir implements disk.FS.
func (m *Disk) ReadDir(dir string) ([]string, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	var names []string
	for name := range m.names {
		if filepath.Dir(name) == dir {
			names = append(names, filepath.Base(name))
		}
	}
	return names, nil
}

// MkdirAll implements disk.FS.
func (m *Disk) MkdirAll(string, fs.FileMode) error { return nil }

// Rename implements disk.FS.
func (m *Disk) Rename(from, to string) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if m.names[from] == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	m.names[to] = m.names[from]
	delete(m.names, from)
	return nil
}

// Remove implements disk.FS.
func (m *Disk) Remove(name string) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	f := m.names[name]
	if f == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if m.faults.Space >= 0 {
		m.faults.Space += int64(len(f.data))
	}
	delete(m.names, name)
	return nil
}

// SyncDir implements disk.FS.
func (m *Disk) SyncDir(string) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	m.durable = maps.Clone(m.names)
	return nil
}

type lockFile struct {
	m    *Disk
	name string
}

func (l lockFile) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locks, l.name)
	return nil
}

// Lock implements disk.FS.
func (m *Disk) Lock(name string) (io.Closer, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.locks[name] {
		return nil, fmt.Errorf("lock %s: %w", name, disk.ErrLocked)
	}
	m.locks[name] = true
	return lockFile{m, name}, nil
}

type handle struct {
	m    *Disk
	f    *file
	name string
	pos  int64

	direct bool // opened with disk.Direct
}

func (h *handle) Read(p []byte) (int, error) {
	unlock, err := h.m.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	if h.pos >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.f.data[h.pos:])
	h.pos += int64(n)
	return n, nil
}

func (h *handle) Write(p []byte) (int, error) {
	n, err := h.WriteAt(p, h.pos)
	h.pos += int64(n)
	return n, err
}

// WriteAt writes what there is space for, then fails.
func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	if h.direct && (off%directUnit != 0 || len(p)%directUnit != 0 || reflect.ValueOf(p).Pointer()%directUnit != 0) {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: syscall.EINVAL}
	}
	unlock, err := h.m.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	want := int64(len(p))
	cost := max(0, off+want-int64(len(h.f.data)))
	if h.m.faults.CopyOnWrite {
		cost = want
	}
	if h.m.faults.Space >= 0 && cost > h.m.faults.Space {
		want -= cost - h.m.faults.Space
		cost, err = h.m.faults.Space, syscall.ENOSPC
	}
	if h.m.faults.Space >= 0 {
		h.m.faults.Space -= cost
	}
	if end := int(off + want); end > len(h.f.data) {
		h.f.data = append(h.f.data, make([]byte, end-len(h.f.data))...)
	}
	copy(h.f.data[off:], p[:want])
	for s := int(off) / sector; int64(s*sector) < off+want; s++ {
		h.f.dirty[s] = true
	}
	return int(want), err
}

func (h *handle) Sync() error {
	unlock, err := h.m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	h.m.syncs++
	if h.m.faults.FailSync != nil {
		if err := h.m.faults.FailSync(h.name); err != nil {
			return err
		}
	}
	if len(h.f.synced) > len(h.f.data) {
		h.f.synced = h.f.synced[:len(h.f.data)]
	}
	h.f.synced = append(h.f.synced, make([]byte, len(h.f.data)-len(h.f.synced))...)
	for s := range h.f.dirty {
		if s*sector < len(h.f.data) {
			copy(h.f.synced[s*sector:], h.f.data[s*sector:min((s+1)*sector, len(h.f.data))])
		}
	}
	clear(h.f.dirty)
	return nil
}

func (h *handle) Datasync() error {
	h.m.mu.Lock()
	d := h.m.faults.SlowSync
	h.m.mu.Unlock()
	if d > 0 {
		time.Sleep(d) //nolint:sleep // in a bubble, where it costs nothing
	}
	return h.Sync()
}

func (h *handle) Size() (int64, error) {
	unlock, err := h.m.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return int64(len(h.f.data)), nil
}

func (h *handle) Close() error { return nil }
