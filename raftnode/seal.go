package raftnode

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Sealer encrypts what is written to disk. Methods are called from one
// goroutine at a time. A Sealer opens whatever any earlier key of it sealed.
type Sealer interface {
	Seal(clear []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// encodeEntry is index, term, type in clear (so that segments can be dropped
// without the key), then the data, sealed if there is a Sealer.
func encodeEntry(buf []byte, e *raftpb.Entry, s Sealer) ([]byte, error) {
	buf = binary.BigEndian.AppendUint64(buf, e.Index)
	buf = binary.BigEndian.AppendUint64(buf, e.Term)
	buf = append(buf, byte(e.Type))
	if s == nil {
		return append(append(buf, 0), e.Data...), nil
	}
	sealed, err := s.Seal(e.Data)
	if err != nil {
		return nil, fmt.Errorf("seal entry %d: %w", e.Index, err)
	}
	return append(append(buf, 1), sealed...), nil
}

const entryHeader = 18

func entryIndex(payload []byte) uint64 {
	if len(payload) < entryHeader {
		return 0
	}
	return binary.BigEndian.Uint64(payload)
}

func decodeEntry(b []byte, s Sealer) (raftpb.Entry, error) {
	if len(b) < entryHeader {
		return raftpb.Entry{}, fmt.Errorf("%w: an entry of %d bytes", ErrCorrupt, len(b))
	}
	e := raftpb.Entry{
		Index: binary.BigEndian.Uint64(b), Term: binary.BigEndian.Uint64(b[8:]), Type: raftpb.EntryType(b[16]),
	}
	data, err := unseal(b[17], b[entryHeader:], s)
	if err != nil {
		return e, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	e.Data = append([]byte(nil), data...)
	return e, nil
}

func unseal(mode byte, data []byte, s Sealer) ([]byte, error) {
	switch {
	case mode == 0:
		return data, nil
	case mode != 1:
		return nil, fmt.Errorf("%w: unknown encryption %d", ErrCorrupt, mode)
	case s == nil:
		return nil, errors.New("encrypted, and there is no key")
	}
	return s.Open(data)
}
