package raftnode

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
)

// A snapshot file is
//
//	magic, length and bytes of the raftpb.SnapshotMetadata
//	frames: length, encryption mode, bytes; a length of 0 ends them
//
// The applier's data has its own checksum.
const (
	snapshotMagic  = "LGNSNAP\x01"
	snapshotSuffix = ".snap"
	frameSize      = 256 << 10
	maxFrame       = frameSize + 1024
	maxMetadata    = 1 << 20
)

func snapshotName(m *raftpb.SnapshotMetadata) string {
	return fmt.Sprintf("%016x-%016x%s", m.Index, m.Term, snapshotSuffix)
}

// writeSnapshot makes the file durable, or leaves none.
func writeSnapshot(dir string, m *raftpb.SnapshotMetadata, s Sealer, write func(io.Writer) error) (err error) {
	path := filepath.Join(dir, snapshotName(m))
	f, err := os.OpenFile(path+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path+".tmp"))
		}
	}()
	bw := bufio.NewWriterSize(f, frameSize)
	meta, err := m.Marshal()
	if err == nil {
		_, err = bw.Write(binary.BigEndian.AppendUint32([]byte(snapshotMagic), uint32(len(meta))))
	}
	if err == nil {
		_, err = bw.Write(meta)
	}
	fw := &frameWriter{w: bw, seal: s}
	if err == nil {
		err = write(fw)
	}
	if err == nil {
		err = fw.finish()
	}
	if err == nil {
		err = bw.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(dir)
}

type frameWriter struct {
	w    io.Writer
	seal Sealer
	buf  []byte
}

func (f *frameWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), frameSize-len(f.buf))
		f.buf = append(f.buf, p[:k]...)
		p = p[k:]
		if len(f.buf) == frameSize {
			if err := f.frame(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (f *frameWriter) frame() error {
	data, mode := f.buf, byte(0)
	if f.seal != nil {
		var err error
		if data, err = f.seal.Seal(f.buf); err != nil {
			return err
		}
		mode = 1
	}
	h := append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), mode)
	if _, err := f.w.Write(h); err != nil {
		return err
	}
	_, err := f.w.Write(data)
	f.buf = f.buf[:0]
	return err
}

func (f *frameWriter) finish() error {
	if len(f.buf) > 0 {
		if err := f.frame(); err != nil {
			return err
		}
	}
	_, err := f.w.Write(make([]byte, 5))
	return err
}

// openSnapshot reads a file's metadata; the reader gives the applier's data.
func openSnapshot(path string, s Sealer) (*raftpb.SnapshotMetadata, io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	m, r, err := readMetadata(bufio.NewReaderSize(f, frameSize), s)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return m, struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

func readMetadata(br *bufio.Reader, s Sealer) (*raftpb.SnapshotMetadata, io.Reader, error) {
	h := make([]byte, len(snapshotMagic)+4)
	if _, err := io.ReadFull(br, h); err != nil || string(h[:len(snapshotMagic)]) != snapshotMagic {
		return nil, nil, fmt.Errorf("%w: not a snapshot of this version", ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(h[len(snapshotMagic):])
	if n > maxMetadata {
		return nil, nil, fmt.Errorf("%w: %d bytes of metadata", ErrCorrupt, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(br, b); err != nil {
		return nil, nil, fmt.Errorf("%w: cut short", ErrCorrupt)
	}
	m := &raftpb.SnapshotMetadata{}
	if err := m.Unmarshal(b); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return m, &frameReader{r: br, seal: s}, nil
}

type frameReader struct {
	r    io.Reader
	seal Sealer
	rest []byte
	end  bool
}

func (f *frameReader) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.end {
			return 0, io.EOF
		}
		var h [5]byte
		if _, err := io.ReadFull(f.r, h[:]); err != nil {
			return 0, fmt.Errorf("%w: cut short", ErrCorrupt)
		}
		n := binary.BigEndian.Uint32(h[:])
		if n == 0 {
			f.end = true
			continue
		}
		if n > maxFrame {
			return 0, fmt.Errorf("%w: a frame of %d bytes", ErrCorrupt, n)
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(f.r, b); err != nil {
			return 0, fmt.Errorf("%w: cut short", ErrCorrupt)
		}
		var err error
		if f.rest, err = unseal(h[4], b, f.seal); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// snapshots lists the files, newest first.
func snapshots(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), snapshotSuffix) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	slices.Reverse(names)
	return names, nil
}

// dropSnapshots keeps the newest one and keep older ones.
func dropSnapshots(dir string, keep uint64) error {
	names, err := snapshots(dir)
	if err != nil {
		return err
	}
	for i, name := range names {
		if uint64(i) > keep {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// readAll reads a snapshot file's data, to be sent to another member.
func readAll(path string, s Sealer) ([]byte, error) {
	_, r, err := openSnapshot(path, s)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(r)
	return b.Bytes(), errors.Join(err, r.Close())
}
