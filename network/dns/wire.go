package dns

import "encoding/binary"

// Limits of RFC 1035 and ours.
const (
	headerSize = 12
	maxLabel   = 63
	maxName    = 255 // bytes on the wire, with the last zero
	minUDP     = 512 // what every client takes without saying so
	maxMessage = 65535
	// maxUDP is the largest datagram that is sent or asked for: loopback and
	// any server take it.
	maxUDP = 4096
	// maxQuery is the longest query that is read. Those of resolvers have less
	// than 300 bytes.
	maxQuery = 1280
	// optSize is an OPT record without options.
	optSize = 11
)

// Bits of a header's flags.
const (
	flagResponse      = 1 << 15
	flagAuthoritative = 1 << 10
	flagTruncated     = 1 << 9
	flagDesired       = 1 << 8 // recursion
	flagAvailable     = 1 << 7 // recursion
	flagChecking      = 1 << 4 // disabled
	opcodeShift       = 11
	opcodeMask        = 15
	rcodeMask         = 15
)

// RCode is the outcome that an answer tells.
type RCode uint8

// Outcomes. BadVersion needs EDNS.
const (
	Success        RCode = 0
	FormatError    RCode = 1
	ServerFailure  RCode = 2
	NameError      RCode = 3 // NXDOMAIN
	NotImplemented RCode = 4
	Refused        RCode = 5
	BadVersion     RCode = 16
)

// Type of a record.
type Type uint16

// Types that mean something here.
const (
	TypeA    Type = 1
	TypePTR  Type = 12
	TypeAAAA Type = 28
	typeOPT  Type = 41
	// From typeIXFR to typeANY are transfers and questions for everything.
	typeIXFR Type = 251
	typeANY  Type = 255
)

const classIN = 1

// query is a query, as far as answering it needs. Its slices are the message's.
type query struct {
	id, flags uint16
	question  []byte // name, type and class as they were sent
	kind      Type
	class     uint16
	nameLen   int
	nameBuf   [maxName]byte
	// plain is false for a name with a dot or a zero inside a label, which can't
	// be written as text.
	plain bool
	edns  bool
	// size is where the OPT record says how large an answer may be, an offset.
	size    int
	udpSize int
	version byte
}

// name is the name in question as text, in lower case, without a dot at the
// end; empty for the root.
func (q *query) name() []byte { return q.nameBuf[:q.nameLen] }

// opcode of the query; 0 is an ordinary one.
func (q *query) opcode() int { return int(q.flags>>opcodeShift) & opcodeMask }

// parse reads a query. ok is false for what must not be answered at all: too
// short to have an id, or itself an answer. Otherwise code tells what is wrong
// with it; q has all that could be read until then.
func (q *query) parse(m []byte) (code RCode, ok bool) {
	if len(m) < headerSize {
		return 0, false
	}
	q.id, q.flags = binary.BigEndian.Uint16(m), binary.BigEndian.Uint16(m[2:])
	q.question, q.nameLen, q.plain, q.edns, q.udpSize = nil, 0, true, false, minUDP
	if q.flags&flagResponse != 0 {
		return 0, false
	}
	if q.opcode() != 0 {
		return NotImplemented, true
	}
	if binary.BigEndian.Uint16(m[4:]) != 1 {
		return FormatError, true
	}
	at := q.parseName(m)
	if at < 0 || at+4 > len(m) {
		return FormatError, true
	}
	q.kind, q.class = Type(binary.BigEndian.Uint16(m[at:])), binary.BigEndian.Uint16(m[at+2:])
	q.question = m[headerSize : at+4]
	records := int(binary.BigEndian.Uint16(m[6:])) + int(binary.BigEndian.Uint16(m[8:])) + int(binary.BigEndian.Uint16(m[10:]))
	if !q.parseRecords(m, at+4, records) {
		return FormatError, true
	}
	if q.edns && q.version != 0 {
		return BadVersion, true
	}
	return Success, true
}

// parseName reads the name in question and returns where it ends, -1 if it is
// not valid.
func (q *query) parseName(m []byte) int {
	at := headerSize
	for {
		if at >= len(m) {
			return -1
		}
		n := int(m[at])
		at++
		if n == 0 {
			return at
		}
		if n > maxLabel || at+n > len(m) || at+n-headerSize >= maxName {
			return -1
		}
		if q.nameLen > 0 {
			q.nameBuf[q.nameLen] = '.'
			q.nameLen++
		}
		for _, c := range m[at : at+n] {
			if c == '.' || c == 0 {
				q.plain = false
			}
			q.nameBuf[q.nameLen] = lower(c)
			q.nameLen++
		}
		at += n
	}
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		c += 'a' - 'A'
	}
	return c
}

// parseRecords skips records and reads the first OPT among them.
func (q *query) parseRecords(m []byte, at, records int) bool {
	for range records {
		start := at
		if at = skipName(m, at); at < 0 || at+10 > len(m) {
			return false
		}
		length := int(binary.BigEndian.Uint16(m[at+8:]))
		if Type(binary.BigEndian.Uint16(m[at:])) == typeOPT {
			if q.edns || at != start+1 {
				return false // RFC 6891: one, of the root
			}
			q.edns, q.size, q.version = true, at+2, m[at+5]
			q.udpSize = max(minUDP, int(binary.BigEndian.Uint16(m[at+2:])))
		}
		if at += 10 + length; at > len(m) {
			return false
		}
	}
	return true
}

// skipName returns where a name that begins at an offset ends, -1 if it is not
// valid.
func skipName(m []byte, at int) int {
	for at < len(m) {
		switch n := int(m[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			if at+2 > len(m) {
				return -1
			}
			return at + 2
		case n > maxLabel:
			return -1
		default:
			at += 1 + n
		}
	}
	return -1
}

// reply is an answer that is being written.
type reply struct {
	b     []byte
	q     *query
	limit int // bytes
	count int
}

// begin starts an answer to q that takes at most limit bytes.
func begin(b []byte, q *query, code RCode, limit int) reply {
	r := reply{b: b[:0], q: q, limit: limit}
	flags := q.flags&(opcodeMask<<opcodeShift|flagDesired|flagChecking) | flagResponse | flagAvailable | uint16(code)&rcodeMask
	if code == Success || code == NameError {
		flags |= flagAuthoritative
	}
	r.b = append(r.b, byte(q.id>>8), byte(q.id), byte(flags>>8), byte(flags), 0, 0, 0, 0, 0, 0, 0, 0)
	if q.question != nil {
		r.b[5] = 1
		r.b = append(r.b, q.question...)
	}
	if q.edns {
		r.limit -= optSize
	}
	return r
}

// add writes a record of the name in question, and reports false if there is
// no more room.
func (r *reply) add(kind Type, data []byte) bool {
	if len(r.b)+12+len(data) > r.limit || r.count == maxMessage {
		return false
	}
	r.b = append(r.b, 0xc0, headerSize, byte(kind>>8), byte(kind), 0, classIN, 0, 0, 0, timeToLive, byte(len(data)>>8), byte(len(data)))
	r.b = append(r.b, data...)
	r.count++
	return true
}

// truncated marks the answer as one that has more.
func (r *reply) truncated() { r.b[2] |= flagTruncated >> 8 }

// end returns the message.
func (r *reply) end(code RCode) []byte {
	r.b[6], r.b[7] = byte(r.count>>8), byte(r.count)
	if r.q.edns {
		r.b[11] = 1
		r.b = append(r.b, 0, byte(typeOPT>>8), byte(typeOPT), maxUDP>>8, maxUDP&0xff, byte(code>>4), 0, 0, 0, 0, 0)
	}
	return r.b
}

// refuse answers with an outcome alone.
func refuse(b []byte, q *query, code RCode) []byte {
	r := begin(b, q, code, maxMessage)
	return r.end(code)
}

// appendName appends a name's wire format; ok is false for what is no name.
func appendName(b []byte, name string) (_ []byte, ok bool) {
	start := len(b)
	for name != "" {
		end := 0
		for end < len(name) && name[end] != '.' {
			end++
		}
		if end == 0 || end > maxLabel {
			return b, false
		}
		b = append(append(b, byte(end)), name[:end]...)
		name = name[min(end+1, len(name)):]
	}
	b = append(b, 0)
	return b, len(b)-start <= maxName
}
