package raftnode

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/raftnode/disk"
)

// What to do about damage that this member can't mend itself.
const remedy = "move the folder away and let this manager join the swarm again, or restore the folder from a backup (with one manager only: docker swarm init --force-new-cluster after that)"

// replay is what the log says after a snapshot.
type replay struct {
	base     uint64 // the snapshot's
	baseTerm uint64
	state    raftpb.HardState
	entries  []raftpb.Entry
	torn     int64 // bytes of a write that a crash tore; -1: none
	dropTail bool  // the log disagrees with the snapshot
}

// openWAL reads all frames, zeroes a torn last one, and goes on after it. The
// caller has set fs, dir, id, sealer, slow and now.
func openWAL(w *wal, r *replay) error {
	w.last, w.next, r.torn = map[uint64]uint64{}, 0, -1
	numbers, err := segments(w.fs, w.dir)
	if err != nil {
		return err
	}
	defer func() { w.next = max(w.next, 1) }()
	for i, number := range numbers {
		if i > 0 && number != numbers[i-1]+1 {
			return fmt.Errorf("%w: %s is missing: %s", ErrCorrupt, filepath.Join(w.dir, segmentName(numbers[i-1]+1)), remedy)
		}
		w.number, w.path = number, filepath.Join(w.dir, segmentName(number))
		b, err := readSegment(w.fs, w.path)
		if err != nil {
			return err
		}
		end, err := w.scan(b, r)
		if err != nil {
			return fmt.Errorf("%s: at byte %d: %w", w.path, end, err)
		}
		clean := allZero(b[end:])
		if i < len(numbers)-1 {
			if !clean {
				return fmt.Errorf("%s: %w at byte %d, though later segments exist: %s", w.path, ErrCorrupt, end, remedy)
			}
			continue
		}
		if !clean {
			r.torn = int64(len(bytes.TrimRight(b[end:], "\x00")))
		}
		return w.resume(b, end, clean)
	}
	return nil
}

func segments(fs FS, dir string) ([]uint64, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		hex, ok := strings.CutSuffix(name, segmentSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: no name of a segment of the log: move the file away", filepath.Join(dir, name))
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// maxSegment is the largest size that a segment can have.
const maxSegment = segmentSize + 2*(maxFrame+frameHeader) + diskBlock

func readSegment(fs FS, path string) (b []byte, err error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxSegment {
		return nil, fmt.Errorf("%s: %w: a segment of %d bytes: %s", path, ErrCorrupt, size, remedy)
	}
	b = make([]byte, size)
	if _, err = io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// scan takes a segment's frames and returns where they end.
func (w *wal) scan(b []byte, r *replay) (end int, err error) {
	for {
		f, ok := parseFrame(b[end:])
		if !ok {
			return end, w.laterFrame(b[end:])
		}
		if w.next == 0 {
			w.next = f.seq // earlier segments were dropped
		}
		if f.seq != w.next {
			return end, fmt.Errorf("%w: write %d where %d was expected: %s", ErrCorrupt, f.seq, w.next, remedy)
		}
		clear, err := unseal(w.sealer, f.mode, f.data)
		if err != nil {
			return end, err
		}
		if err := w.records(clear, end == 0, r); err != nil {
			return end, err
		}
		end += f.size
		w.next++
	}
}

// laterFrame refuses a log that has good frames after a bad one: the bad one
// was durable before the good one was written, so no crash tore it.
func (w *wal) laterFrame(b []byte) error {
	magic := binary.LittleEndian.AppendUint32(nil, frameMagic)
	for at := 1; at < len(b); at++ {
		i := bytes.Index(b[at:], magic)
		if i < 0 {
			return nil
		}
		at += i
		if f, ok := parseFrame(b[at:]); ok && f.seq > w.next {
			return fmt.Errorf("%w: a good write follows %d bytes later, so this is no torn write: %s", ErrCorrupt, at, remedy)
		}
	}
	return nil
}

func (w *wal) records(b []byte, head bool, r *replay) error {
	for len(b) > 0 {
		typ, body, rest, err := nextRecord(b)
		if err != nil {
			return err
		}
		if head && typ != recordIdentity {
			return fmt.Errorf("%w: a segment without its head: %s", ErrCorrupt, remedy)
		}
		head = false
		if err := w.record(typ, body, r); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func (w *wal) record(typ byte, body []byte, r *replay) error {
	switch typ {
	case recordIdentity:
		var id uint64
		if err := uvarints(body, &id); err != nil {
			return err
		}
		if id != w.id {
			return fmt.Errorf("the log is that of raft member %x, this is %x: is it another node's folder?", id, w.id)
		}
		return nil
	case recordState:
		var s raftpb.HardState
		if err := unmarshal(&s, body); err != nil {
			return err
		}
		w.state = s
		return nil
	case recordEntry:
		var e raftpb.Entry
		if err := unmarshal(&e, body); err != nil {
			return err
		}
		w.last[w.number] = max(w.last[w.number], e.Index)
		return r.entry(e)
	case recordMark:
		var index, term uint64
		if err := uvarints(body, &index, &term); err != nil {
			return err
		}
		if index > r.base {
			return fmt.Errorf("%w: the snapshot of entry %d is missing: %s", ErrCorrupt, index, remedy)
		}
		r.entries, r.dropTail = nil, false
		return nil
	}
	return fmt.Errorf("%w: record of unknown type %d: written by a newer version?", ErrCorrupt, typ)
}

// entry cuts off what e replaces, and keeps e if the snapshot does not have it.
func (r *replay) entry(e raftpb.Entry) error {
	if e.Index <= r.base {
		r.entries = nil
		r.dropTail = e.Index == r.base && e.Term != r.baseTerm
		return nil
	}
	if len(r.entries) > 0 {
		first := r.entries[0].Index
		if e.Index > first+uint64(len(r.entries)) {
			return fmt.Errorf("%w: entry %d follows entry %d: %s", ErrCorrupt, e.Index, first+uint64(len(r.entries))-1, remedy)
		}
		r.entries = r.entries[:max(e.Index, first)-first]
	}
	r.entries = append(r.entries, e)
	return nil
}

// finish makes state and entries agree with the snapshot and each other.
func (r *replay) finish(state raftpb.HardState) error {
	if r.dropTail {
		r.entries = nil
	}
	if len(r.entries) > 0 && r.entries[0].Index != r.base+1 {
		return fmt.Errorf("%w: the log begins at entry %d, but the newest snapshot ends at %d: %s", ErrCorrupt, r.entries[0].Index, r.base, remedy)
	}
	if state.Term < r.baseTerm {
		state.Term, state.Vote = r.baseTerm, 0
	}
	state.Commit = max(state.Commit, r.base)
	if last := r.base + uint64(len(r.entries)); state.Commit > last {
		return fmt.Errorf("%w: entry %d was committed, but the log ends at %d: %s", ErrCorrupt, state.Commit, last, remedy)
	}
	r.state = state
	return nil
}

// resume goes on writing the current segment, which is b, at end.
func (w *wal) resume(b []byte, end int, clean bool) error {
	size := int64(len(b))
	if !clean {
		if err := w.zero(int64(end), size); err != nil {
			return fmt.Errorf("zero a torn write in %s: %w", w.path, err)
		}
	}
	f, err := w.fs.OpenFile(w.path, os.O_RDWR|disk.Direct, 0o600)
	if err != nil {
		return err
	}
	w.file, w.off, w.size, w.tail = f, int64(end), size, slices.Clone(b[end/diskBlock*diskBlock:end])
	return nil
}

// zero makes the current segment's bytes from one to another zero, durably.
func (w *wal) zero(from, to int64) error {
	f, err := w.fs.OpenFile(w.path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = fillZero(f, from, to)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func allZero(b []byte) bool { return len(bytes.TrimRight(b, "\x00")) == 0 }
