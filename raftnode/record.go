package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"go.etcd.io/raft/v3/raftpb"
)

// ErrCorrupt means that a file is damaged in a way that no crash explains.
var ErrCorrupt = errors.New("damaged")

// A frame is what one write and one fdatasync make durable:
//
//	magic 4 · length of data 4 · sequence number 8 · mode 1 · zeros 3 · CRC-32C of all the rest 4 · data
//
// little endian. Frames are numbered without a gap through all segments, and a
// frame is only written when the one before it is durable. So a bad frame with
// a good one of a higher number after it is damage, and a bad one with none
// after it is the write that a crash tore.
//
// Data, when clear, is records: type 1 · length uvarint · bytes.
const (
	frameMagic  = 0x3157474c // "LGW1"
	frameHeader = 24
	// maxFrame bounds a frame's data: the largest entry, sealed, fits.
	maxFrame = 32 << 20
)

// The types of record. The numbers are on disk: they never change.
const (
	recordIdentity = 1 // raft id of the member, uvarint; first in each segment
	recordState    = 2 // raftpb.HardState; second in each segment
	recordEntry    = 3 // raftpb.Entry; cuts off entries of its index and higher
	recordMark     = 4 // index and term, uvarints, of a snapshot that replaced all entries
)

func appendFrame(b []byte, seq uint64, mode byte, data []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, frameMagic)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = append(b, mode, 0, 0, 0)
	sum := frameSum(b[at:], data)
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, data...)
}

func frameSum(header, data []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(header, table), table, data)
}

// frame is a frame that was read.
type frame struct {
	seq  uint64
	mode byte
	data []byte
	size int
}

// parseFrame reads the frame at the beginning of b. ok is false unless it is
// whole and its checksum is right.
func parseFrame(b []byte) (f frame, ok bool) {
	if len(b) < frameHeader || binary.LittleEndian.Uint32(b) != frameMagic {
		return f, false
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if n > maxFrame || uint64(n) > uint64(len(b)-frameHeader) {
		return f, false
	}
	data := b[frameHeader : frameHeader+int(n)]
	if frameSum(b[:frameHeader-4], data) != binary.LittleEndian.Uint32(b[frameHeader-4:]) {
		return f, false
	}
	return frame{seq: binary.LittleEndian.Uint64(b[8:]), mode: b[16], data: data, size: frameHeader + int(n)}, true
}

func appendRecord(b []byte, typ byte, body []byte) []byte {
	b = append(b, typ)
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

// appendEntry avoids a copy of what may be large.
func appendEntry(b []byte, e *raftpb.Entry) ([]byte, error) {
	n := e.Size()
	b = append(b, recordEntry)
	b = binary.AppendUvarint(b, uint64(n))
	at := len(b)
	b = append(b, make([]byte, n)...)
	_, err := e.MarshalToSizedBuffer(b[at:])
	return b, err
}

// nextRecord splits the first record off.
func nextRecord(b []byte) (typ byte, body, rest []byte, err error) {
	n, k := binary.Uvarint(b[1:])
	if k <= 0 || n > uint64(len(b)-1-k) {
		return 0, nil, nil, fmt.Errorf("%w: a record is cut short", ErrCorrupt)
	}
	body = b[1+k:]
	return b[0], body[:n:n], body[n:], nil
}

func appendMark(b []byte, index, term uint64) []byte {
	body := binary.AppendUvarint(nil, index)
	return appendRecord(b, recordMark, binary.AppendUvarint(body, term))
}

// uvarints reads exactly len(out) numbers.
func uvarints(b []byte, out ...*uint64) error {
	for _, p := range out {
		v, k := binary.Uvarint(b)
		if k <= 0 {
			return fmt.Errorf("%w: a number is cut short", ErrCorrupt)
		}
		*p, b = v, b[k:]
	}
	if len(b) > 0 {
		return fmt.Errorf("%w: more than its end", ErrCorrupt)
	}
	return nil
}

// unmarshal decodes what raft's generated code encoded.
func unmarshal(m interface{ Unmarshal([]byte) error }, b []byte) error {
	if err := m.Unmarshal(b); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}
