package linux

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// messages are netlink messages that go to the kernel at once, each with its
// attributes. The zero value has none.
type messages struct {
	buf      []byte
	last     int // where the last one begins
	purposes []purpose
	sent     uint32 // in the past
}

// purpose of a message.
type purpose struct {
	what string     // stands before the kernel's error
	fine unix.Errno // an error that is none
}

// begin appends a message: a header, and what is of a fixed size behind it. what
// stands before the kernel's error.
func (m *messages) begin(what string, kind, flags uint16, fixed ...byte) {
	m.end()
	m.last, m.purposes = len(m.buf), append(m.purposes, purpose{what: what})
	m.buf = append(m.buf, 0, 0, 0, 0)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, unix.NLM_F_REQUEST|flags)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, m.sent+m.count())
	m.buf = append(append(m.buf, 0, 0, 0, 0), fixed...)
}

// end fixes the length of the last message.
func (m *messages) end() {
	if !m.empty() {
		binary.NativeEndian.PutUint32(m.buf[m.last:], uint32(len(m.buf)-m.last))
	}
}

// attr appends an attribute to the last message.
func (m *messages) attr(kind uint16, data ...byte) {
	at := m.nest(kind)
	m.buf = append(m.buf, data...)
	m.close(at)
}

// text appends an attribute that ends in a zero byte.
func (m *messages) text(kind uint16, s string) {
	at := m.nest(kind)
	m.buf = append(append(m.buf, s...), 0)
	m.close(at)
}

// number appends an attribute in the machine's byte order, as devices and routes
// have them.
func (m *messages) number(kind uint16, v uint32) {
	at := m.nest(kind)
	m.buf = binary.NativeEndian.AppendUint32(m.buf, v)
	m.close(at)
}

// bigEndian appends an attribute in the network's byte order, as the packet filter
// has them.
func (m *messages) bigEndian(kind uint16, v uint32) {
	at := m.nest(kind)
	m.buf = binary.BigEndian.AppendUint32(m.buf, v)
	m.close(at)
}

// nest begins an attribute whose contents are appended next, and returns what close
// is to be called with then.
func (m *messages) nest(kind uint16) (at int) {
	at = len(m.buf)
	m.buf = append(m.buf, 0, 0)
	m.buf = binary.NativeEndian.AppendUint16(m.buf, kind)
	return at
}

func (m *messages) close(at int) {
	binary.NativeEndian.PutUint16(m.buf[at:], uint16(len(m.buf)-at))
	for len(m.buf)%unix.NLMSG_ALIGNTO != 0 {
		m.buf = append(m.buf, 0)
	}
}

func (m *messages) count() uint32 { return uint32(len(m.purposes)) }
func (m *messages) empty() bool   { return len(m.purposes) == 0 }

// forget empties it.
func (m *messages) forget() {
	m.sent += m.count()
	m.buf, m.purposes = m.buf[:0], m.purposes[:0]
}

// tolerate takes an error of the last message for none.
func (m *messages) tolerate(e unix.Errno) { m.purposes[len(m.purposes)-1].fine = e }

// flagLast sets flags of the last message.
func (m *messages) flagLast(flags uint16) {
	const at = 6 // in nlmsghdr
	f := binary.NativeEndian.Uint16(m.buf[m.last+at:])
	binary.NativeEndian.PutUint16(m.buf[m.last+at:], f|flags)
}

// refusal is what the kernel says of one message.
type refusal struct {
	what  string
	errno unix.Errno
}

func (r *refusal) Error() string { return r.what + ": " + r.errno.Error() }
func (r *refusal) Unwrap() error { return r.errno }

// errNoReply: the kernel's answer was lost, for lack of memory.
var errNoReply = errors.New("the kernel has not answered")

// openNetlink opens a socket in the thread's namespace that never waits.
func openNetlink(family int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return -1, os.NewSyscallError("open a netlink socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind a netlink socket", err)
	}
	return fd, nil
}

// send has the kernel do all, on a socket that nobody else uses meanwhile: by the
// time that the call returns it has, and the answers are there. It returns the first
// refusal, as a *refusal. acked is the place, from 1, of the last message that is
// answered also if there is nothing wrong. The messages are forgotten.
func (m *messages) send(fd int, acked uint32) error {
	m.end()
	defer m.forget()
	if err := unix.Sendto(fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send to the kernel", err)
	}
	var first error
	var buf [4096]byte
	for {
		n, e := unix.Read(fd, buf[:])
		if errors.Is(e, unix.EAGAIN) {
			return cmp.Or(first, errNoReply)
		}
		if e != nil {
			return fmt.Errorf("%w: %w", errNoReply, e)
		}
		done := false
		received(buf[:n], func(kind uint16, place uint32, d []byte) bool {
			place -= m.sent
			if kind != unix.NLMSG_ERROR || len(d) < 4 || place == 0 || place > m.count() {
				return true // of what was sent before, and was not answered in time
			}
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(d)))
			if p := m.purposes[place-1]; errno != 0 && errno != p.fine && first == nil {
				first = &refusal{p.what, errno}
			}
			done = place == acked
			return !done
		})
		if done {
			return first
		}
	}
}

// received calls f with each message of a datagram, and its sequence number, until f
// returns false. It reports whether the datagram is whole.
func received(d []byte, f func(kind uint16, seq uint32, data []byte) bool) (whole bool) {
	for len(d) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(d))
		if size < unix.SizeofNlMsghdr || size > len(d) {
			return false
		}
		if !f(binary.NativeEndian.Uint16(d[4:]), binary.NativeEndian.Uint32(d[8:]), d[unix.SizeofNlMsghdr:size]) {
			return true
		}
		d = d[min((size+3)&^3, len(d)):]
	}
	return true
}

// attributes are those of a message, by number.
func attributes(d []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(d) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(d))
			if size < unix.SizeofNlAttr || size > len(d) {
				return
			}
			kind := binary.NativeEndian.Uint16(d[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, d[unix.SizeofNlAttr:size]) {
				return
			}
			d = d[min((size+3)&^3, len(d)):]
		}
	}
}
