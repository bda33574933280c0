package raftnode

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
)

// A snapshot file, and a snapshot on its way to another member, is
//
//	magic · blocks
//	block: length of data 4 · mode 1 · data
//
// little endian. The first block is the head (JSON), then comes the applier's
// data; a block of no length ends it, followed by the CRC-32C of all clear data,
// head included.
const (
	snapshotMagic  = "LGNSNAP\x01"
	snapshotSuffix = ".snap"
	blockSize      = 256 << 10
	maxBlock       = 1 << 20
)

// snapshotHead is a snapshot's first block. Fields may be added.
type snapshotHead struct {
	Index, Term uint64
	Voters      []uint64
	Learners    []uint64          `json:",omitempty"`
	Addresses   map[uint64]string // of members
}

func (h *snapshotHead) metadata() raftpb.SnapshotMetadata {
	return raftpb.SnapshotMetadata{Index: h.Index, Term: h.Term, ConfState: raftpb.ConfState{Voters: h.Voters, Learners: h.Learners}}
}

func snapshotName(index, term uint64) string {
	return fmt.Sprintf("%016x-%016x%s", index, term, snapshotSuffix)
}

// snapshotWriter writes blocks.
type snapshotWriter struct {
	w    *bufio.Writer
	seal Sealer
	buf  []byte
	sum  uint32
	size int64 // of the applier's data so far
}

// encodeSnapshot writes a whole snapshot, and returns how large the applier's
// data is.
func encodeSnapshot(w io.Writer, s Sealer, h *snapshotHead, write func(io.Writer) error) (size int64, err error) {
	sw := &snapshotWriter{w: bufio.NewWriterSize(w, 64<<10), seal: s, buf: make([]byte, 0, blockSize)}
	head, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	if len(head) > maxBlock/2 {
		return 0, fmt.Errorf("a cluster of %d voters is too large", len(h.Voters))
	}
	if _, err := sw.w.WriteString(snapshotMagic); err != nil {
		return 0, err
	}
	if err := sw.block(head); err != nil {
		return 0, err
	}
	if err := write(sw); err != nil {
		return 0, err
	}
	return sw.size, sw.end()
}

// Write cuts data into blocks.
func (s *snapshotWriter) Write(p []byte) (int, error) {
	n := len(p)
	s.size += int64(n)
	for len(p) > 0 {
		k := min(len(p), blockSize-len(s.buf))
		s.buf = append(s.buf, p[:k]...)
		p = p[k:]
		if len(s.buf) == blockSize {
			if err := s.block(s.buf); err != nil {
				return 0, err
			}
			s.buf = s.buf[:0]
		}
	}
	return n, nil
}

func (s *snapshotWriter) block(clear []byte) error {
	s.sum = crc32.Update(s.sum, crc32.MakeTable(crc32.Castagnoli), clear)
	mode, data, err := seal(s.seal, clear)
	if err != nil {
		return err
	}
	if _, err := s.w.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))), mode)); err != nil {
		return err
	}
	_, err = s.w.Write(data)
	return err
}

func (s *snapshotWriter) end() error {
	if len(s.buf) > 0 {
		if err := s.block(s.buf); err != nil {
			return err
		}
	}
	if _, err := s.w.Write(binary.LittleEndian.AppendUint32(make([]byte, 5), s.sum)); err != nil {
		return err
	}
	return s.w.Flush()
}

// snapshotReader gives the applier's data. EOF comes only after the checksum
// was found right.
type snapshotReader struct {
	r    *bufio.Reader
	seal Sealer
	rest []byte
	sum  uint32
	size int64 // of what was read
	end  bool
}

// decodeSnapshot reads the head.
func decodeSnapshot(r io.Reader, s Sealer) (*snapshotHead, *snapshotReader, error) {
	sr := &snapshotReader{r: bufio.NewReaderSize(r, 64<<10), seal: s}
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(sr.r, magic); err != nil {
		return nil, nil, cut(err)
	}
	if string(magic) != snapshotMagic {
		return nil, nil, fmt.Errorf("%w: no snapshot of this version", ErrCorrupt)
	}
	b, err := sr.block()
	if err != nil {
		return nil, nil, err
	}
	h := &snapshotHead{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, nil, fmt.Errorf("%w: head of a snapshot: %w", ErrCorrupt, err)
	}
	if h.Index == 0 || h.Term == 0 || len(h.Voters) == 0 {
		return nil, nil, fmt.Errorf("%w: head of a snapshot lacks index, term or voters", ErrCorrupt)
	}
	return h, sr, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: cut short", ErrCorrupt)
	}
	return err
}

// block returns the next block's clear data; io.EOF after the last.
func (s *snapshotReader) block() ([]byte, error) {
	var h [5]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return nil, cut(err)
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n == 0 {
		if h[4] != 0 {
			return nil, fmt.Errorf("%w: its end is not what was written", ErrCorrupt)
		}
		if _, err := io.ReadFull(s.r, h[:4]); err != nil {
			return nil, cut(err)
		}
		if binary.LittleEndian.Uint32(h[:]) != s.sum {
			return nil, fmt.Errorf("%w: checksum does not match", ErrCorrupt)
		}
		s.end = true
		return nil, io.EOF
	}
	if n > maxBlock {
		return nil, fmt.Errorf("%w: a block of %d bytes", ErrCorrupt, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(s.r, b); err != nil {
		return nil, cut(err)
	}
	clear, err := unseal(s.seal, h[4], b)
	s.sum = crc32.Update(s.sum, crc32.MakeTable(crc32.Castagnoli), clear)
	return clear, err
}

// Read gives the applier's data.
func (s *snapshotReader) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.end {
			return 0, io.EOF
		}
		var err error
		if s.rest, err = s.block(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.rest)
	s.rest, s.size = s.rest[n:], s.size+int64(n)
	return n, nil
}

// drain reads to the end, so that the checksum is looked at.
func (s *snapshotReader) drain() error {
	_, err := io.Copy(io.Discard, s)
	return err
}

// writeSnapshot makes a durable file under its temporary name, or leaves none. It
// returns how large the applier's data is.
func writeSnapshot(fs FS, path string, s Sealer, h *snapshotHead, write func(io.Writer) error) (size int64, err error) {
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	size, err = encodeSnapshot(f, s, h, write)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, errors.Join(err, fs.Remove(path))
	}
	return size, nil
}

// openSnapshot opens a file. The caller closes it.
func openSnapshot(fs FS, path string, s Sealer) (*snapshotHead, *snapshotReader, io.Closer, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	h, r, err := decodeSnapshot(f, s)
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return h, r, f, nil
}

// snapshots lists the files, newest first.
func snapshots(fs FS, dir string) ([]string, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, snapshotSuffix) })
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// dropSnapshots keeps the newest one and keep older ones.
func dropSnapshots(fs FS, dir string, keep uint64) error {
	names, err := snapshots(fs, dir)
	if err != nil {
		return err
	}
	for i, name := range names {
		if uint64(i) > keep {
			if err := fs.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}
