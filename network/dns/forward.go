package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

// exchange asks servers for what names don't know, each by a socket of its own:
// in order, the next one when one has failed or let patience go by. The first
// that has an answer wins. m is the client's message; it is changed. The answer
// has the client's id. An error means that there is none.
func (s *Server) exchange(ctx context.Context, proto string, m []byte, q *query, servers []netip.AddrPort, inside bool) ([]byte, error) {
	if q.edns {
		binary.BigEndian.PutUint16(m[q.size:], uint16(min(q.udpSize, maxUDP)))
	}
	dial := s.hub.dial
	if inside {
		dial = s.inside
	}
	ctx, cancel := context.WithTimeout(ctx, allowed)
	defer cancel()
	health := &s.hub.health
	if inside {
		health = nil // what a sandbox reaches says nothing of others
	}
	servers = health.order(servers, time.Now())
	type result struct {
		answer []byte
		err    error
	}
	results := make(chan result, len(servers))
	asked, waiting := 0, 0
	ask := func() {
		server := servers[asked]
		asked, waiting = asked+1, waiting+1
		one := bytes.Clone(m)
		s.wg.Go(func() {
			start := time.Now()
			a, err := askServer(ctx, dial, proto, server, one, q)
			switch {
			case err == nil || errors.Is(err, errUnwilling):
				health.answered(server)
			case ctx.Err() == nil || time.Since(start) >= patience:
				health.missed(server, time.Now())
			}
			results <- result{a, err}
		})
	}
	next := time.NewTimer(patience)
	defer next.Stop()
	var last result
	for ask(); waiting > 0; {
		select {
		case r := <-results:
			waiting--
			if r.err == nil {
				return r.answer, nil
			}
			if r.answer != nil || last.err == nil {
				last = r
			}
		case <-next.C:
		}
		if asked < len(servers) && ctx.Err() == nil {
			next.Reset(patience)
			ask()
		}
	}
	if last.answer != nil {
		return last.answer, nil // all refuse: the client is told how
	}
	return nil, last.err
}

// errUnwilling is returned with an answer that says that the server could not,
// or would not, find out.
var errUnwilling = errors.New("the server refused or failed")

// errForged is an answer that does not belong to the query.
var errForged = errors.New("an answer to another question")

// askServer asks one server. The answer has the client's id.
func askServer(ctx context.Context, dial Dial, proto string, server netip.AddrPort, m []byte, q *query) ([]byte, error) {
	c, err := dial(ctx, proto, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	copy(m, id[:])
	ask, length := askDatagram, binary.BigEndian.Uint16(id[:])
	if proto == "tcp" {
		ask = askStream
	}
	a, err := ask(c, m, q, length)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(a, q.id)
	switch RCode(a[3] & rcodeMask) {
	case ServerFailure, Refused, NotImplemented, FormatError:
		return a, errUnwilling
	}
	return a, nil
}

// askDatagram waits for the answer: what does not belong to the query is passed
// over, since anybody may have sent it.
func askDatagram(c net.Conn, m []byte, q *query, id uint16) ([]byte, error) {
	if _, err := c.Write(m); err != nil {
		return nil, err
	}
	limit := min(q.udpSize, maxUDP)
	buf := make([]byte, limit+1)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if !belongs(buf[:n], q, id) {
			continue
		}
		if n > limit { // more than it was allowed
			w := begin(nil, q, RCode(buf[3]&rcodeMask), limit)
			w.truncated()
			return w.end(0), nil
		}
		return buf[:n], nil
	}
}

func askStream(c net.Conn, m []byte, q *query, id uint16) ([]byte, error) {
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	a := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, a); err != nil {
		return nil, err
	}
	if !belongs(a, q, id) {
		return nil, errForged
	}
	return a, nil
}

// belongs reports whether a is an answer to the query: its id, and the question
// in any case of letters. A server that fails need not repeat the question.
func belongs(a []byte, q *query, id uint16) bool {
	if len(a) < headerSize || binary.BigEndian.Uint16(a) != id {
		return false
	}
	flags := binary.BigEndian.Uint16(a[2:])
	if flags&flagResponse == 0 || int(flags>>opcodeShift)&opcodeMask != q.opcode() {
		return false
	}
	switch binary.BigEndian.Uint16(a[4:]) {
	case 0:
		return flags&rcodeMask != 0 && RCode(flags&rcodeMask) != NameError
	case 1:
		return len(a) >= headerSize+len(q.question) && sameQuestion(a[headerSize:headerSize+len(q.question)], q.question)
	}
	return false
}

// sameQuestion compares names without regard to case, the rest exactly. Bytes
// that count labels are below those of letters.
func sameQuestion(a, b []byte) bool {
	name := len(b) - 4
	for i := range name {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return bytes.Equal(a[name:], b[name:])
}
