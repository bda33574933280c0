package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"
)

// Names is a load of queries for a name's IPv4 addresses.
type Names struct {
	Pace
	Server string // as 127.0.0.11:53
	Name   string
}

// Offsets in a message's header, the type and class asked for, and the mask of the
// response code; RFC 1035, 4.1.
const (
	headerLength   = 12
	offsetFlags    = 2
	offsetAnswers  = 6
	recursion      = 0x0100
	rcodeMask      = 0x000f
	typeA, classIN = 1, 1
)

// query is the message that asks for the name.
func query(name string) []byte {
	b := make([]byte, headerLength)
	binary.BigEndian.PutUint16(b[offsetFlags:], recursion)
	binary.BigEndian.PutUint16(b[4:], 1) // one question
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, typeA, 0, classIN)
}

// Run asks until ctx is done or all are answered. An answer without an address
// is a failure.
func (l Names) Run(ctx context.Context) (*Report, error) {
	rec := newRecorder()
	ask := query(l.Name)
	l.run(ctx, func(n int, next func() bool) {
		conn, err := net.DialTimeout("udp", l.Server, l.timeout())
		if err != nil {
			rec.failed(Failure{At: time.Now(), Stage: "connect", Reason: err.Error()})
			return
		}
		defer func() { _ = conn.Close() }()
		rec.connected(false)
		out, in := append([]byte(nil), ask...), make([]byte, maxDatagram)
		for id := uint16(n << 8); next(); id++ {
			start := time.Now()
			binary.BigEndian.PutUint16(out, id)
			if err := resolve(conn, out, in, l.timeout()); err != nil {
				rec.failed(Failure{At: time.Now(), Stage: "receive", Local: conn.LocalAddr().String(), Reason: err.Error()})
				continue
			}
			rec.done(start, "", "")
		}
	})
	return rec.report(), nil
}

func resolve(conn net.Conn, out, in []byte, timeout time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := conn.Write(out); err != nil {
		return err
	}
	for {
		n, err := conn.Read(in)
		if err != nil {
			return err
		}
		if n < headerLength || [2]byte(in) != [2]byte(out) {
			continue // an answer that came too late
		}
		code, answers := binary.BigEndian.Uint16(in[offsetFlags:])&rcodeMask, binary.BigEndian.Uint16(in[offsetAnswers:])
		if code != 0 || answers == 0 {
			return fmt.Errorf("response code %d with %d answers", code, answers)
		}
		return nil
	}
}
