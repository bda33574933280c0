package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/legion-swarm/legion/api"
)

// An entry of the log is
//
//	format, reads, ops
//	read: kind, id, version            what the change depends on
//	op:   opPut, kind, body            body: the object as JSON; a task as appendTask has it
//	      opDelete, kind, id
//	      opSpec, key, body            a spec that tasks of this entry refer to
//
// with counts and lengths as varints. JSON, since objects other than tasks are
// written seldom next to how often they are read; a task's spec is stored once
// per service and version.
const format = 1

const (
	opPut    = 1
	opDelete = 2
	opSpec   = 3
)

// errMalformed means that an entry or a snapshot can't be understood. A
// manager that meets one halts: to go on would be to diverge.
var errMalformed = errors.New("store: malformed entry")

type entry struct {
	reads []read
	ops   []op
}

type read struct {
	ref
	version uint64
}

type op struct {
	code byte
	kind Kind
	id   string // what a deletion deletes; the key of a spec
	body []byte
}

// specKey names the spec that a task shares with others.
func specKey(t *api.Task) string {
	if t.ServiceID == "" {
		return t.ID
	}
	return t.ServiceID + "/" + strconv.FormatUint(t.SpecVersion, 10)
}

// sameSpec reports whether the two tasks, of one id, share a spec.
func sameSpec(a, b *api.Task) bool {
	return a.ServiceID == b.ServiceID && (a.SpecVersion == b.SpecVersion || a.ServiceID == "")
}

func encodeObject(o any) ([]byte, error) {
	if t, ok := o.(*api.Task); ok {
		return appendTask(make([]byte, 0, taskSize), t)
	}
	return json.Marshal(o)
}

// decodeObject decodes what encodeObject encoded; a task has no spec yet.
func decodeObject(k Kind, body []byte, in *intern) (o any, err error) {
	switch k {
	case KindCluster:
		o = new(api.Cluster)
	case KindNode:
		o = new(api.Node)
	case KindService:
		o = new(api.Service)
	case KindTask:
		o, err = decodeTask(body, in)
	case KindNetwork:
		o = new(api.Network)
	case KindSecret:
		o = new(api.Secret)
	case KindConfig:
		o = new(api.Config)
	case KindServiceVersion:
		o = new(api.ServiceVersion)
	default:
		return nil, fmt.Errorf("%w: unknown %s: written by a newer version?", errMalformed, k)
	}
	if k != KindTask {
		err = strictJSON(body, o)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errMalformed, k, err)
	}
	if idOf(o) == "" {
		return nil, fmt.Errorf("%w: %s without an id", errMalformed, k)
	}
	return o, nil
}

// strictJSON refuses fields that it does not know: to drop what a newer version
// wrote would be to diverge from it.
func strictJSON(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

func decodeSpec(key string, body []byte) (*api.TaskSpec, error) {
	spec := new(api.TaskSpec)
	if err := strictJSON(body, spec); err != nil {
		return nil, fmt.Errorf("%w: spec %s: %w", errMalformed, key, err)
	}
	return spec, nil
}

func (e *entry) encode() []byte {
	n := 16
	for _, o := range e.ops {
		n += len(o.body) + len(o.id) + 16
	}
	b := make([]byte, 0, n+len(e.reads)*40)
	b = append(b, format)
	b = binary.AppendUvarint(b, uint64(len(e.reads)))
	for _, r := range e.reads {
		b = append(b, byte(r.kind))
		b = appendString(b, r.id)
		b = binary.AppendUvarint(b, r.version)
	}
	b = binary.AppendUvarint(b, uint64(len(e.ops)))
	for _, o := range e.ops {
		b = o.append(b)
	}
	return b
}

func (o *op) append(b []byte) []byte {
	b = append(b, o.code)
	switch o.code {
	case opPut:
		b = append(b, byte(o.kind))
		return appendString(b, o.body)
	case opDelete:
		b = append(b, byte(o.kind))
		return appendString(b, o.id)
	default:
		b = appendString(b, o.id)
		return appendString(b, o.body)
	}
}

func appendString[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decoder reads an entry. After the first error every read gives zero values.
type decoder struct {
	b   []byte
	in  *intern
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", errMalformed, what)
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("cut short")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail("cut short")
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int       { return int(d.varint()) }
func (d *decoder) shared() string { return d.in.get(d.bytes()) }

func (d *decoder) flag() bool {
	c := d.byte()
	if c > 1 {
		d.fail("bad flag")
	}
	return c == 1
}

// end refuses anything after what was read.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("more than its end")
	}
	return d.err
}

// count reads how many items follow, each of at least min bytes.
func (d *decoder) count(min int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/min) {
		d.fail("count beyond the end")
		return 0
	}
	return int(n)
}

func (d *decoder) kind() Kind {
	k := Kind(d.byte())
	if !k.valid() {
		d.fail(k.String() + ": written by a newer version?")
	}
	return k
}

func (d *decoder) op() op {
	o := op{code: d.byte()}
	switch o.code {
	case opPut:
		o.kind = d.kind()
		o.body = d.bytes()
	case opDelete:
		o.kind = d.kind()
		o.id = string(d.bytes())
	case opSpec:
		o.id = string(d.bytes())
		o.body = d.bytes()
	default:
		d.fail(fmt.Sprintf("unknown operation %d: written by a newer version?", o.code))
	}
	return o
}

// foreseen is for how many items there is room before the first is read.
const foreseen = 1 << 12

func decodeEntry(b []byte) (*entry, error) {
	d := &decoder{b: b}
	if f := d.byte(); f != format {
		d.fail(fmt.Sprintf("unknown format %d: written by a newer version?", f))
	}
	e := &entry{}
	n := d.count(3)
	e.reads = make([]read, 0, min(n, foreseen))
	for range n {
		e.reads = append(e.reads, read{ref: ref{d.kind(), string(d.bytes())}, version: d.uvarint()})
	}
	n = d.count(3)
	e.ops = make([]op, 0, min(n, foreseen))
	for range n {
		e.ops = append(e.ops, d.op())
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return e, nil
}
