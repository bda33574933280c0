package raftnode

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

const sector = 512

// memFS is a file system in memory that loses, like a disk, what was not synced
// when it crashes: each dirty sector is written or not, each unsynced name is
// the old or the new one.
type memFS struct {
	mu      sync.Mutex
	names   map[string]*memFile // as processes see them
	durable map[string]*memFile // as the disk has them
	locks   map[string]bool
	crashed bool

	space    int64 // bytes by which files may still grow or, with cow, be written; negative: no limit
	cow      bool
	failSync func(name string) error
	slowSync time.Duration
	syncs    int
}

type memFile struct {
	data, synced []byte
	dirty        map[int]bool
}

var (
	_          FS = (*memFS)(nil)
	errCrashed    = errors.New("the machine has crashed")
)

func newMemFS() *memFS {
	return &memFS{names: map[string]*memFile{}, durable: map[string]*memFile{}, locks: map[string]bool{}, space: -1}
}

// crash ends the use of m, and returns what is found after the restart.
func (m *memFS) crash(rng *rand.Rand) *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
	after := newMemFS()
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
		g := &memFile{data: data, synced: slices.Clone(data), dirty: map[int]bool{}}
		after.names[name], after.durable[name] = g, g
	}
	return after
}

// powerOffAt makes the machine stop in the middle of the n-th sync from now.
func (m *memFS) powerOffAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failSync = func(string) error {
		if n--; n > 0 {
			return nil
		}
		m.crashed = true
		return errCrashed
	}
}

func (m *memFS) lock() (func(), error) {
	m.mu.Lock()
	if m.crashed {
		m.mu.Unlock()
		return nil, errCrashed
	}
	return m.mu.Unlock, nil
}

func (m *memFS) OpenFile(name string, flag int, _ fs.FileMode) (File, error) {
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
		f = &memFile{dirty: map[int]bool{}}
		m.names[name] = f
	case flag&syscall.O_TRUNC != 0:
		f.data = nil
	}
	return &memHandle{m: m, f: f, name: name}, nil
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
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

func (m *memFS) MkdirAll(string, fs.FileMode) error { return nil }

func (m *memFS) Rename(from, to string) error {
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

func (m *memFS) Remove(name string) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	f := m.names[name]
	if f == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	if m.space >= 0 {
		m.space += int64(len(f.data))
	}
	delete(m.names, name)
	return nil
}

func (m *memFS) SyncDir(string) error {
	unlock, err := m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	m.durable = maps.Clone(m.names)
	return nil
}

type memLock struct {
	m    *memFS
	name string
}

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	delete(l.m.locks, l.name)
	return nil
}

func (m *memFS) Lock(name string) (io.Closer, error) {
	unlock, err := m.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if m.locks[name] {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	m.locks[name] = true
	return memLock{m, name}, nil
}

type memHandle struct {
	m    *memFS
	f    *memFile
	name string
	pos  int64
}

func (h *memHandle) Read(p []byte) (int, error) {
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

func (h *memHandle) Write(p []byte) (int, error) {
	n, err := h.WriteAt(p, h.pos)
	h.pos += int64(n)
	return n, err
}

// WriteAt writes what there is space for, then fails.
func (h *memHandle) WriteAt(p []byte, off int64) (int, error) {
	unlock, err := h.m.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	want := int64(len(p))
	cost := max(0, off+want-int64(len(h.f.data)))
	if h.m.cow {
		cost = want
	}
	if h.m.space >= 0 && cost > h.m.space {
		want -= cost - h.m.space
		cost, err = h.m.space, syscall.ENOSPC
	}
	if h.m.space >= 0 {
		h.m.space -= cost
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

func (h *memHandle) Sync() error {
	unlock, err := h.m.lock()
	if err != nil {
		return err
	}
	defer unlock()
	h.m.syncs++
	if h.m.failSync != nil {
		if err := h.m.failSync(h.name); err != nil {
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

func (h *memHandle) Datasync() error {
	h.m.mu.Lock()
	d := h.m.slowSync
	h.m.mu.Unlock()
	if d > 0 {
		time.Sleep(d) // only in a synctest bubble
	}
	return h.Sync()
}

func (h *memHandle) Size() (int64, error) {
	unlock, err := h.m.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return int64(len(h.f.data)), nil
}

func (h *memHandle) Close() error { return nil }
