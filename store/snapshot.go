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
	for row := range v.tables.specs.all() {
		body, err := json.Marshal(row.spec)
		e.op(&op{code: opSpec, id: row.key, body: body}, err)
	}
	for k := KindCluster; k.valid(); k++ {
		for o := range v.list(k, ByIDPrefix("")) {
			e.object(k, o)
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
	w    *bufio.Writer
	buf  []byte
	task []byte
	err  error
}

func (e *snapshotWriter) object(k Kind, o any) {
	body, err := e.task, error(nil)
	if t, ok := o.(*api.Task); ok { // there may be a million: in memory that is there
		body, err = appendTask(body[:0], t)
		e.task = body
	} else {
		body, err = encodeObject(o)
	}
	e.op(&op{code: opPut, kind: k, body: body}, err)
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
	var size [binary.MaxVarintLen64]byte
	e.raw(binary.AppendUvarint(size[:0], uint64(len(e.buf))))
	e.raw(e.buf)
}

// Restore replaces all that the store has by a snapshot. Watchers overflow.
// On error the store is what it was. It is called by the log's owner, like
// Apply.
func (s *Store) Restore(r io.Reader) error {
	l := loader{edit: s.newEdit(), specs: map[string]*api.TaskSpec{}, refs: map[string]int{}}
	index, err := l.read(r)
	if err != nil {
		return fmt.Errorf("store: read snapshot: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs, s.intern = l.refs, l.intern
	s.view.Store(&View{tables: l.tables, index: index})
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

// loader takes a snapshot's operations.
type loader struct {
	edit   edit
	tables tables
	specs  map[string]*api.TaskSpec
	refs   map[string]int
	intern intern
}

func (l *loader) read(r io.Reader) (index uint64, err error) {
	in := &sumReader{r: bufio.NewReaderSize(r, 64<<10)}
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil {
		return 0, err
	}
	if string(magic) != snapshotMagic {
		return 0, fmt.Errorf("%w: not a snapshot of this version", errMalformed)
	}
	if index, err = binary.ReadUvarint(in); err != nil {
		return 0, err
	}
	if err := l.ops(in); err != nil {
		return 0, err
	}
	want := in.sum
	var got [4]byte
	if _, err := io.ReadFull(in.r, got[:]); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint32(got[:]) != want {
		return 0, errors.New("checksum does not match: the file is damaged")
	}
	return index, nil
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
	obj, err := decodeObject(o.kind, o.body, &l.intern)
	if err != nil {
		return err
	}
	if t, ok := obj.(*api.Task); ok {
		if err := l.giveSpec(t); err != nil {
			return err
		}
	}
	if l.tables.put(l.edit, o.kind, idOf(obj), obj) != nil {
		return fmt.Errorf("%w: %s %s is there twice", errMalformed, o.kind, idOf(obj))
	}
	return nil
}

func (l *loader) giveSpec(t *api.Task) error {
	key := specKey(t)
	if t.Spec = l.specs[key]; t.Spec == nil {
		return fmt.Errorf("%w: task %s without its spec", errMalformed, t.ID)
	}
	if l.refs[key]++; l.refs[key] == 1 {
		l.tables.putSpec(l.edit, newSpecRow(t, t.Spec))
	}
	return nil
}
