package dockerapi

import (
	"encoding/binary"
	"io"
	"sync"
)

// Streams of a multiplexed answer.
const (
	frameStdout = 1
	frameStderr = 2
	frameSystem = 3 // an error of the daemon's, ends the stream
)

// maxFrame bounds what one frame carries, so that no client needs a huge buffer.
const maxFrame = 1 << 20

// mux writes several streams to one writer in frames: one byte for the stream,
// three zeros, the length as four bytes big-endian, then the data. Safe for
// concurrent use by the writers that stream returns.
type mux struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

func newMux(w io.Writer) *mux { return &mux{w: w} }

func (m *mux) write(stream byte, p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	written := 0
	for first := true; first || len(p) > 0; first = false {
		part := p[:min(len(p), maxFrame)]
		p = p[len(part):]
		m.buf = append(m.buf[:0], stream, 0, 0, 0)
		m.buf = binary.BigEndian.AppendUint32(m.buf, uint32(len(part)))
		m.buf = append(m.buf, part...)
		if _, err := m.w.Write(m.buf); err != nil {
			return written, err
		}
		written += len(part)
	}
	return written, nil
}

// stream gives a writer for one stream. A write of no bytes writes nothing.
func (m *mux) stream(n byte) io.Writer { return frameWriter{m, n} }

type frameWriter struct {
	m *mux
	n byte
}

func (f frameWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return f.m.write(f.n, p)
}
