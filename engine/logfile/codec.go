package logfile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

// Message is a line of output, or a piece of one that was too long.
type Message struct {
	Stream  string // "stdout" or "stderr"
	At      time.Time
	Line    []byte // without its newline
	Partial bool   // more of the same line follows
	Attrs   map[string]string
}

// codec is a file format: records one after another.
type codec interface {
	// append adds a record to b.
	append(b []byte, m *Message) []byte
	// next decodes the first record of b and returns its length; 0 when b ends
	// before the record does. ok is false for a record that makes no sense and
	// is to be skipped; a negative length: nothing after it can be read.
	next(b []byte) (m Message, n int, ok bool)
	// tail returns the offset at which the last n records of the file begin, and
	// how many there are if fewer.
	tail(r io.ReaderAt, size int64, n int) (offset int64, found int, err error)
	// end returns the size without what is half-written at the end.
	end(r io.ReaderAt, size int64) (int64, error)
}

// jsonCodec is Docker's json-file: a JSON object a line.
type jsonCodec struct {
	attrs []byte // the encoded attributes, with their name and a comma; may be empty
}

func newJSONCodec(attrs map[string]string) *jsonCodec {
	if len(attrs) == 0 {
		return &jsonCodec{}
	}
	b, _ := json.Marshal(attrs) // a map of strings always can be
	return &jsonCodec{attrs: append(append([]byte(`"attrs":`), b...), ',')}
}

func (c *jsonCodec) append(b []byte, m *Message) []byte {
	b = append(b, `{"log":"`...)
	b = appendEscaped(b, m.Line)
	if !m.Partial {
		b = append(b, `\n`...)
	}
	b = append(b, `","stream":"`...)
	b = append(b, m.Stream...)
	b = append(b, `",`...)
	b = append(b, c.attrs...)
	b = append(b, `"time":"`...)
	b = m.At.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, "\"}\n"...)
}

// appendEscaped writes the inside of a JSON string, as encoding/json does with
// HTML escaping; bytes that are not UTF-8 become U+FFFD.
func appendEscaped(b, s []byte) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' {
			b = append(b, s[start:i]...)
			if n == 1 {
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, `\u202`...)
				b = append(b, hex[r&15])
			}
			start = i + n
		}
		i += n
	}
	return append(b, s[start:]...)
}

func (c *jsonCodec) next(b []byte) (Message, int, bool) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		return Message{}, 0, false
	}
	var line struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Time   time.Time         `json:"time"`
		Attrs  map[string]string `json:"attrs"`
	}
	if err := json.Unmarshal(b[:end], &line); err != nil || line.Time.IsZero() {
		return Message{}, end + 1, false
	}
	m := Message{Stream: line.Stream, At: line.Time, Attrs: line.Attrs, Partial: true}
	m.Line = []byte(line.Log)
	if n := len(m.Line); n > 0 && m.Line[n-1] == '\n' {
		m.Line, m.Partial = m.Line[:n-1], false
	}
	return m, end + 1, true
}

const tailBlock = 64 << 10

func (c *jsonCodec) tail(r io.ReaderAt, size int64, n int) (int64, int, error) {
	size, err := c.end(r, size)
	if err != nil || size == 0 || n == 0 {
		return size, 0, err
	}
	buf := make([]byte, tailBlock)
	found := 0
	for at := size - 1; at > 0; { // the last byte ends the last record
		from := max(0, at-tailBlock)
		b := buf[:at-from]
		if _, err := r.ReadAt(b, from); err != nil && err != io.EOF {
			return 0, 0, err
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] == '\n' {
				if found++; found == n {
					return from + int64(i) + 1, found, nil
				}
			}
		}
		at = from
	}
	return 0, found + 1, nil
}

func (c *jsonCodec) end(r io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 4096)
	for at := size; at > 0; {
		from := max(0, at-int64(len(buf)))
		b := buf[:at-from]
		if _, err := r.ReadAt(b, from); err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		at = from
	}
	return 0, nil
}

// localCodec is the format of driver local: the length of the body, the body,
// and the length again, so that a file can be read from its end. The body is a
// byte of flags, the time in nanoseconds since 1970, and the line. Numbers are
// big-endian. Attributes are the same for all records and not in the file.
type localCodec struct{ attrs map[string]string }

const (
	localHead   = 1 + 8
	localMax    = 1 << 20 // no body is longer
	flagStderr  = 1
	flagPartial = 2
)

func (c *localCodec) append(b []byte, m *Message) []byte {
	n := uint32(localHead + len(m.Line))
	b = binary.BigEndian.AppendUint32(b, n)
	var flags byte
	if m.Stream == "stderr" {
		flags |= flagStderr
	}
	if m.Partial {
		flags |= flagPartial
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(m.At.UnixNano()))
	b = append(b, m.Line...)
	return binary.BigEndian.AppendUint32(b, n)
}

func (c *localCodec) next(b []byte) (Message, int, bool) {
	if len(b) < 4 {
		return Message{}, 0, false
	}
	n := binary.BigEndian.Uint32(b)
	if n < localHead || n > localMax {
		return Message{}, -1, false
	}
	total := int(n) + 8
	if len(b) < total {
		return Message{}, 0, false
	}
	if binary.BigEndian.Uint32(b[n+4:]) != n || b[4]&^(flagStderr|flagPartial) != 0 {
		return Message{}, -1, false
	}
	m := Message{Stream: "stdout", Partial: b[4]&flagPartial != 0, Attrs: c.attrs}
	if b[4]&flagStderr != 0 {
		m.Stream = "stderr"
	}
	m.At = time.Unix(0, int64(binary.BigEndian.Uint64(b[5:]))).UTC()
	m.Line = bytes.Clone(b[4+localHead : 4+n])
	return m, total, true
}

func (c *localCodec) tail(r io.ReaderAt, size int64, n int) (int64, int, error) {
	var b [4]byte
	at, found := size, 0
	for at > 0 && found < n {
		if at < 8+localHead {
			return 0, 0, errCorrupt(at)
		}
		if _, err := r.ReadAt(b[:], at-4); err != nil {
			return 0, 0, err
		}
		body := int64(binary.BigEndian.Uint32(b[:]))
		if body < localHead || body > localMax || body+8 > at {
			return 0, 0, errCorrupt(at)
		}
		// What is half-written may end in a number that looks like a length.
		if _, err := r.ReadAt(b[:], at-body-8); err != nil {
			return 0, 0, err
		}
		if int64(binary.BigEndian.Uint32(b[:])) != body {
			return 0, 0, errCorrupt(at)
		}
		at -= body + 8
		found++
	}
	return at, found, nil
}

type errCorrupt int64

func (e errCorrupt) Error() string {
	return "log file is damaged before offset " + strconv.FormatInt(int64(e), 10)
}

func (c *localCodec) end(r io.ReaderAt, size int64) (int64, error) {
	if _, found, err := c.tail(r, size, 1); err == nil && (found == 1 || size == 0) {
		return size, nil
	}
	var head [4]byte
	var at int64
	for at+8 <= size {
		if _, err := r.ReadAt(head[:], at); err != nil {
			return at, err
		}
		body := int64(binary.BigEndian.Uint32(head[:]))
		if body < localHead || body > localMax || at+body+8 > size {
			break
		}
		if _, err := r.ReadAt(head[:], at+4+body); err != nil {
			return at, err
		}
		if int64(binary.BigEndian.Uint32(head[:])) != body {
			break
		}
		at += body + 8
	}
	return at, nil
}
