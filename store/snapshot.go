package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-memdb"

	"github.com/legion-swarm/legion/api"
)

// A snapshot is
//
//	magic, index
//	ops, each with its length: specs, then objects by kind and id
//	0, CRC-32C of all before it
//
// in the encoding of the log.
const (
	snapshotMagic = "LGNSTOR\x01"
	maxOp         = 64 << 20
)

// Snapshot writes a view. It may be called while entries are applied; equal
// views give equal bytes.
func (v *View) Snapshot(w io.Writer) error {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	bw := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	e := &snapshotWriter{w: bw}
	e.raw([]byte(snapshotMagic))
	e.raw(binary.AppendUvarint(nil, v.index))
	for o := range rows(v.txn, tableSpec, ByIDPrefix("")) {
		row := o.(*specRow)
		body, err := json.Marshal(row.spec)
		e.op(&op{code: opSpec, id: row.key, body: body}, err)
	}
	for k := KindCluster; k.valid(); k++ {
		for o := range v.list(k, ByIDPrefix("")) {
			body, err := encodeObject(o)
			e.op(&op{code: opPut, kind: k, body: body}, err)
		}
	}
	e.raw([]byte{0})
	if e.err == nil {
		e.err = bw.Flush()
	}
	if e.err == nil {
		_, e.err = w.Write(binary.LittleEndian.AppendUint32(nil, sum.Sum32()))
	}
	if e.err != nil {
		return fmt.Errorf("store: write snapshot: %w", e.err)
	}
	return nil
}

type snapshotWriter struct {
	w   *bufio.Writer
	buf []byte
	err error
}

func (e *snapshotWriter) raw(b []byte) {
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

func (e *snapshotWriter) op(o *op, err error) {
	if e.err == nil {
		e.err = err
	}
	e.buf = o.append(e.buf[:0])
	e.raw(binary.AppendUvarint(nil, uint64(len(e.buf))))
	e.raw(e.buf)
}

// Restore replaces all that the store has by a snapshot. Watchers overflow.
// On error the store is what it was. It is called by the log's owner, like
// Apply.
func (s *Store) Restore(r io.Reader) error {
	fresh := &Store{now: s.now, watchLimit: s.watchLimit}
	if err := fresh.reset(); err != nil {
		return err
	}
	index, counts, err := fresh.read(r)
	if err != nil {
		return fmt.Errorf("store: read snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.db, s.refs, s.intern = fresh.db, fresh.refs, fresh.intern
	s.view.Store(newView(s.db, index, counts))
	s.failWatchers()
	return nil
}

// sumReader computes the checksum of what is read through it.
type sumReader struct {
	r   *bufio.Reader
	sum uint32
}

func (r *sumReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.sum = crc32.Update(r.sum, crc32.MakeTable(crc32.Castagnoli), p[:n])
	return n, err
}

func (r *sumReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}

func (s *Store) read(r io.Reader) (index uint64, c counts, err error) {
	in := &sumReader{r: bufio.NewReaderSize(r, 64<<10)}
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil {
		return 0, c, err
	}
	if string(magic) != snapshotMagic {
		return 0, c, fmt.Errorf("%w: not a snapshot of this version", errMalformed)
	}
	if index, err = binary.ReadUvarint(in); err != nil {
		return 0, c, err
	}
	txn := s.db.Txn(true)
	defer txn.Abort() // no effect after Commit
	l := loader{store: s, txn: txn, specs: map[string]*api.TaskSpec{}}
	if err := l.ops(in); err != nil {
		return 0, c, err
	}
	want := in.sum
	var got [4]byte
	if _, err := io.ReadFull(in.r, got[:]); err != nil {
		return 0, c, err
	}
	if binary.LittleEndian.Uint32(got[:]) != want {
		return 0, c, errors.New("checksum does not match: the file is damaged")
	}
	txn.Commit()
	return index, l.counts, nil
}

// loader takes a snapshot's operations.
type loader struct {
	store  *Store
	txn    *memdb.Txn
	specs  map[string]*api.TaskSpec
	counts counts
}

func (l *loader) ops(in *sumReader) error {
	var b bytes.Buffer
	for {
		n, err := binary.ReadUvarint(in)
		if err != nil || n == 0 {
			return err
		}
		if n > maxOp {
			return fmt.Errorf("%w: an object of %d bytes", errMalformed, n)
		}
		b.Reset()
		if _, err := io.CopyN(&b, in, int64(n)); err != nil {
			return err
		}
		if err := l.op(b.Bytes()); err != nil {
			return err
		}
	}
}

func (l *loader) op(b []byte) (err error) {
	d := &decoder{b: b}
	o := d.op()
	switch err := d.end(); {
	case err != nil:
		return err
	case o.code == opSpec:
		l.specs[o.id], err = decodeSpec(o.id, o.body)
		return err
	case o.code != opPut:
		return fmt.Errorf("%w: operation %d in a snapshot", errMalformed, o.code)
	}
	obj, err := decodeObject(o.kind, o.body, &l.store.intern)
	if err != nil {
		return err
	}
	if t, ok := obj.(*api.Task); ok {
		if err := l.giveSpec(t); err != nil {
			return err
		}
	}
	if first(l.txn, o.kind, idOf(obj)) != nil {
		return fmt.Errorf("%w: %s %s is there twice", errMalformed, o.kind, idOf(obj))
	}
	l.counts[o.kind]++
	return l.txn.Insert(o.kind.String(), obj)
}

func (l *loader) giveSpec(t *api.Task) error {
	key := specKey(t)
	if t.Spec = l.specs[key]; t.Spec == nil {
		return fmt.Errorf("%w: task %s without its spec", errMalformed, t.ID)
	}
	if l.store.refs[key]++; l.store.refs[key] > 1 {
		return nil
	}
	return l.txn.Insert(tableSpec, newSpecRow(t, t.Spec))
}
