package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/raftnode/disk"
)

// A segment is a file of frames, then zeros up to its size: frames go to blocks
// that are there already, so that fdatasync has no metadata to write.
const (
	segmentSize   = 8 << 20
	segmentSuffix = ".wal"
	spareName     = "next-segment.tmp"
	// chunkSize is from where on a batch is split into several frames.
	chunkSize = 8 << 20
	// slowSync is a duration of fdatasync worth a warning.
	slowSync = time.Second
	// headRoom is more than a segment's first frame takes.
	headRoom = 1 << 10
)

// errNoSpace wraps errors of append that leave the log as it was and go away
// when there is space again.
var errNoSpace = errors.New("the disk is full")

// wal is the log on disk, see frame. It belongs to one goroutine. After an error
// of append other than errNoSpace it must not be used any more.
type wal struct {
	fs     FS
	dir    string
	id     uint64
	sealer Sealer
	slow   func(file string, d time.Duration)
	now    func() time.Time

	file   File
	path   string
	number uint64 // of the current segment
	off    int64
	size   int64
	next   uint64 // sequence number of the next frame
	state  raftpb.HardState
	buf    []byte
	out    []byte            // see blocks
	tail   []byte            // what is in file from the beginning of a block to off
	last   map[uint64]uint64 // segment → highest index of an entry in it
	spare  *spare            // nil: none is being made or is there
}

// spare is a segment that is made in advance.
type spare struct {
	done chan struct{}
	err  error // once done
}

// batch is what append makes durable.
type batch struct {
	state   *raftpb.HardState // nil: as it is
	mark    *raftpb.SnapshotMetadata
	entries []raftpb.Entry
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

// append writes the batch and waits until it is durable. It may be called again
// with the same batch after errNoSpace.
func (w *wal) append(b batch) (err error) {
	w.buf = w.buf[:0]
	if s := b.state; s != nil && (s.Term != w.state.Term || s.Vote != w.state.Vote) {
		early := raftpb.HardState{Term: s.Term, Vote: s.Vote, Commit: w.state.Commit}
		if w.buf, err = appendState(w.buf, &early); err != nil { // before entries of the term
			return err
		}
	}
	if b.mark != nil {
		w.buf = appendMark(w.buf, b.mark.Index, b.mark.Term)
	}
	highest := uint64(0)
	for i := range b.entries {
		if len(w.buf) > chunkSize {
			if err := w.write(highest); err != nil {
				return err
			}
		}
		if w.buf, err = appendEntry(w.buf, &b.entries[i]); err != nil {
			return fmt.Errorf("encode entry %d: %w", b.entries[i].Index, err)
		}
		highest = b.entries[i].Index
	}
	if b.state != nil { // after the entries that it calls committed
		if w.buf, err = appendState(w.buf, b.state); err != nil {
			return err
		}
	}
	if err := w.write(highest); err != nil {
		return err
	}
	if b.state != nil {
		w.state = *b.state
	}
	return nil
}

// write makes one frame of the records in buf, and empties it.
func (w *wal) write(highest uint64) error {
	if len(w.buf) == 0 {
		return nil
	}
	if err := w.frame(w.buf); err != nil {
		return err
	}
	w.last[w.number] = max(w.last[w.number], highest)
	w.buf = w.buf[:0]
	if cap(w.buf) > 1<<20 {
		w.buf, w.out = nil, nil
	}
	return nil
}

func appendState(b []byte, s *raftpb.HardState) ([]byte, error) {
	body, err := s.Marshal()
	return appendRecord(b, recordState, body), err
}

// frame makes records durable, in a new segment if this one has no room.
func (w *wal) frame(records []byte) error {
	mode, data, err := seal(w.sealer, records)
	if err != nil {
		return fmt.Errorf("encrypt the log: %w", err)
	}
	if len(data) > maxFrame {
		return fmt.Errorf("a write of %d bytes to the log: at most %d can be read again", len(data), maxFrame)
	}
	need := int64(frameHeader + len(data))
	if w.off == 0 {
		need += headRoom
	}
	if w.file == nil || w.off+need > w.size {
		if err := w.roll(need + headRoom); err != nil {
			return err
		}
	}
	if w.off == 0 {
		if err := w.head(); err != nil {
			return err
		}
	}
	return w.put(mode, data)
}

// head writes a segment's first frame.
func (w *wal) head() error {
	b := appendRecord(nil, recordIdentity, binary.AppendUvarint(nil, w.id))
	b, err := appendState(b, &w.state)
	if err != nil {
		return err
	}
	mode, data, err := seal(w.sealer, b)
	if err != nil {
		return fmt.Errorf("encrypt the log: %w", err)
	}
	return w.put(mode, data)
}

func (w *wal) put(mode byte, data []byte) error {
	w.out = blocks(w.out, len(w.tail)+frameHeader+len(data))
	end := len(appendFrame(append(w.out[:0], w.tail...), w.next, mode, data))
	clear(w.out[end:])
	began := w.now()
	if _, err := w.file.WriteAt(w.out, w.off-int64(len(w.tail))); err != nil {
		if isNoSpace(err) {
			return fmt.Errorf("%w: write %s: %w", errNoSpace, w.path, err)
		}
		return fmt.Errorf("write %s: %w", w.path, err)
	}
	if err := w.file.Datasync(); err != nil {
		return fmt.Errorf("%s: whether the log is on the disk is unknown: %w: check the disk, then start the manager again", w.path, err)
	}
	if d := w.now().Sub(began); d > slowSync {
		w.slow(w.path, d)
	}
	w.off += int64(end - len(w.tail))
	w.tail = append(w.tail[:0], w.out[end/diskBlock*diskBlock:end]...)
	w.next++
	if w.spare == nil && w.off > w.size/2 {
		w.prepare()
	}
	return nil
}

// prepare makes the next segment's file meanwhile.
func (w *wal) prepare() {
	s := &spare{done: make(chan struct{})}
	w.spare = s
	go func() {
		defer close(s.done)
		s.err = makeSegment(w.fs, filepath.Join(w.dir, spareName), segmentSize)
	}()
}

// roll begins a new segment, with room for need bytes.
func (w *wal) roll(need int64) error {
	size := int64(wholeBlocks(int(max(need, segmentSize))))
	f, path, err := w.newSegment(size)
	if err != nil {
		if isNoSpace(err) {
			return fmt.Errorf("%w: a new segment in %s: %w", errNoSpace, w.dir, err)
		}
		return fmt.Errorf("a new segment in %s: %w", w.dir, err)
	}
	old := w.file
	w.file, w.path, w.off, w.size, w.tail = f, path, 0, size, w.tail[:0]
	w.number++
	w.last[w.number] = 0
	if old != nil {
		return old.Close()
	}
	return nil
}

func (w *wal) newSegment(size int64) (File, string, error) {
	from, path := filepath.Join(w.dir, spareName), filepath.Join(w.dir, segmentName(w.number+1))
	err := errNoSpare
	if w.spare != nil {
		<-w.spare.done
		err, w.spare = w.spare.err, nil
	}
	if err != nil || size > segmentSize {
		err = makeSegment(w.fs, from, size)
	}
	if err != nil {
		return nil, "", err
	}
	if err := w.fs.Rename(from, path); err != nil {
		return nil, "", err
	}
	if err := w.fs.SyncDir(w.dir); err != nil {
		return nil, "", fmt.Errorf("sync folder %s: %w", w.dir, err)
	}
	f, err := w.fs.OpenFile(path, os.O_RDWR|disk.Direct, 0o600)
	return f, path, err
}

var errNoSpare = errors.New("no spare segment")

// makeSegment writes a file of zeros, or leaves none.
func makeSegment(fs FS, path string, size int64) (err error) {
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = fillZero(f, 0, size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(path))
	}
	return nil
}

func fillZero(f File, from, to int64) error {
	zeros := make([]byte, 1<<20)
	for from < to {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), to-from)], from)
		if err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// rewrite begins a new segment with all that is still needed, and removes the
// earlier ones.
func (w *wal) rewrite(b batch) error {
	if err := w.roll(segmentSize); err != nil {
		return err
	}
	if err := w.append(b); err != nil {
		return err
	}
	for number := range w.last {
		if number < w.number {
			w.last[number] = 0
		}
	}
	return w.drop(0)
}

// drop removes segments all of whose entries are at most index, oldest first,
// but never the current one.
func (w *wal) drop(index uint64) error {
	numbers, err := segments(w.fs, w.dir)
	if err != nil {
		return err
	}
	for _, number := range numbers {
		if number >= w.number || w.last[number] > index {
			break
		}
		if err := w.fs.Remove(filepath.Join(w.dir, segmentName(number))); err != nil {
			return err
		}
		delete(w.last, number)
	}
	return nil
}

// Close waits for the spare segment and closes the file.
func (w *wal) Close() error {
	if w.spare != nil {
		<-w.spare.done
		w.spare = nil
	}
	if w.file == nil {
		return nil
	}
	f := w.file
	w.file = nil
	return f.Close()
}
