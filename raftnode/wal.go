package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A segment is a file of records, then zeros up to its size: writes go to
// blocks that exist already, so that fdatasync has no metadata to write.
//
//	record: length (4 bytes, little endian), CRC-32C of type and payload (4), type (1), payload
const (
	segmentSize   = 8 << 20
	recordHeader  = 9
	maxRecord     = 64 << 20
	segmentSuffix = ".wal"
)

type recordType byte

// The types of record. The numbers are on disk: they never change.
const (
	recordEntry recordType = iota + 1 // a raftpb.Entry, perhaps sealed
	recordState                       // a raftpb.HardState
	recordMark                        // index of a snapshot that was received: entries up to it are gone
)

// castagnoli is computed once per WAL; crc32 keeps the table itself.
func checksum(t recordType, payload []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum([]byte{byte(t)}, table), table, payload)
}

// ErrCorrupt means that a log or snapshot file is damaged other than by a crash
// in the middle of the last write.
var ErrCorrupt = errors.New("damaged file")

// wal is an append-only log in segments. It belongs to one goroutine. After an
// error of append or sync it must not be used any more.
type wal struct {
	dir  string
	file *os.File
	seq  uint64 // of the current segment
	off  int64
	size int64
	buf  []byte
	last map[uint64]uint64 // segment → highest entry index in it
}

func segmentName(seq uint64) string { return fmt.Sprintf("%016x%s", seq, segmentSuffix) }

// openWAL reads all records in order, cuts a torn last record off, and goes on
// after it. torn tells that there was one.
func openWAL(dir string, visit func(t recordType, payload []byte) error) (w *wal, torn bool, err error) {
	seqs, err := segments(dir)
	if err != nil {
		return nil, false, err
	}
	w = &wal{dir: dir, last: map[uint64]uint64{}}
	for i, seq := range seqs {
		path := filepath.Join(dir, segmentName(seq))
		end, clean, err := w.readSegment(path, seq, visit)
		if err != nil {
			return nil, false, err
		}
		if i < len(seqs)-1 {
			if !clean {
				return nil, false, fmt.Errorf("%s: %w at byte %d, with later segments after it: restore this manager from another one (leave the swarm and join again) or from a backup", path, ErrCorrupt, end)
			}
			continue
		}
		torn = !clean
		if err := w.resume(path, seq, end); err != nil {
			return nil, false, err
		}
	}
	if w.file == nil {
		err = w.roll()
	}
	return w, torn, err
}

func segments(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var seqs []uint64
	for _, e := range entries {
		hex, ok := strings.CutSuffix(e.Name(), segmentSuffix)
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: not a segment of the log: remove the file", filepath.Join(dir, e.Name()))
		}
		seqs = append(seqs, seq)
	}
	slices.Sort(seqs)
	return seqs, nil
}

// readSegment returns where the records end. clean is false if something other
// than zeros comes after them.
func (w *wal) readSegment(path string, seq uint64, visit func(recordType, []byte) error) (end int64, clean bool, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false, err
	}
	for {
		rest := b[end:]
		if len(rest) < recordHeader || binary.LittleEndian.Uint32(rest) == 0 {
			return end, allZero(rest), nil
		}
		n := int64(binary.LittleEndian.Uint32(rest))
		if n > maxRecord || n > int64(len(rest)-recordHeader) {
			return end, false, laterRecord(path, end, rest)
		}
		t, payload := recordType(rest[8]), rest[recordHeader:recordHeader+n]
		if checksum(t, payload) != binary.LittleEndian.Uint32(rest[4:]) {
			return end, false, laterRecord(path, end, rest[recordHeader+n:])
		}
		if err := visit(t, payload); err != nil {
			return end, false, fmt.Errorf("%s: record at byte %d: %w", path, end, err)
		}
		if t == recordEntry {
			w.last[seq] = max(w.last[seq], entryIndex(payload))
		}
		end += recordHeader + n
	}
}

// laterRecord tells damage from a torn write: a crash leaves nothing valid
// after what it tore.
func laterRecord(path string, at int64, rest []byte) error {
	if len(rest) < recordHeader {
		return nil
	}
	n := int64(binary.LittleEndian.Uint32(rest))
	if n == 0 || n > int64(len(rest)-recordHeader) {
		return nil
	}
	if checksum(recordType(rest[8]), rest[recordHeader:recordHeader+n]) == binary.LittleEndian.Uint32(rest[4:]) {
		return fmt.Errorf("%s: %w at byte %d, with valid records after it: the disk or somebody else changed the file; restore this manager from another one (leave the swarm and join again) or from a backup", path, ErrCorrupt, at)
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// resume goes on writing at the end of a segment; what is after it is zeroed.
func (w *wal) resume(path string, seq uint64, end int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		err = fillZero(f, end, max(info.Size(), segmentSize))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	w.file, w.seq, w.off, w.size = f, seq, end, max(info.Size(), segmentSize)
	return nil
}

func fillZero(f *os.File, from, to int64) error {
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

// roll begins a new segment.
func (w *wal) roll() error {
	path := filepath.Join(w.dir, segmentName(w.seq+1))
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = fillZero(f, 0, segmentSize)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(w.dir)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(tmp))
	}
	if w.file != nil {
		if err := w.file.Close(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	w.file, w.off, w.size = f, 0, segmentSize
	w.seq++
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// add puts a record in the buffer.
func (w *wal) add(t recordType, payload []byte) {
	var h [recordHeader]byte
	binary.LittleEndian.PutUint32(h[:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(h[4:], checksum(t, payload))
	h[8] = byte(t)
	w.buf = append(append(w.buf, h[:]...), payload...)
	if t == recordEntry {
		seq := w.seq
		if w.full() {
			seq++
		}
		w.last[seq] = max(w.last[seq], entryIndex(payload))
	}
}

func (w *wal) full() bool { return w.off >= w.size-segmentSize/8 }

// flush writes the buffer, and makes it durable if sync. The caller has
// called rollIfFull before the first add.
func (w *wal) flush(sync bool) error {
	if len(w.buf) > 0 {
		n, err := w.file.WriteAt(w.buf, w.off)
		if err != nil {
			return fmt.Errorf("write %s: %w", w.file.Name(), err)
		}
		w.off += int64(n)
		w.size = max(w.size, w.off)
		w.buf = w.buf[:0]
	}
	if !sync {
		return nil
	}
	if err := unix.Fdatasync(int(w.file.Fd())); err != nil {
		return fmt.Errorf("fdatasync %s: %w", w.file.Name(), err)
	}
	return nil
}

// drop removes segments of which all entries are at most index, but the
// current one.
func (w *wal) drop(index uint64) error {
	seqs, err := segments(w.dir)
	if err != nil {
		return err
	}
	for _, seq := range seqs {
		if seq == w.seq || w.last[seq] > index {
			break
		}
		if err := os.Remove(filepath.Join(w.dir, segmentName(seq))); err != nil {
			return err
		}
		delete(w.last, seq)
	}
	return nil
}

func (w *wal) Close() error {
	if w.file == nil {
		return nil
	}
	return w.file.Close()
}

var _ io.Closer = (*wal)(nil)
