package keeper

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network/crypt"
)

// cryptSocket is the UDP socket of encrypted overlays. Its system calls, which never
// block, don't tell Go's scheduler, which would hand the processor on in the middle
// of those that take 20 µs.
type cryptSocket struct{ fd int }

const (
	// arrivedBuffer and sentBuffer are what the socket may hold, in bytes, as the
	// kernel counts them: some 200 and 50 frames of the largest kind. A frame that
	// finds no room as it arrives is 45 segments lost, of many streams' that share the
	// socket, and a keeper may have to wait 10 ms for a processor.
	arrivedBuffer = 16 << 20
	sentBuffer    = 4 << 20
	// maxOOB is enough for what the kernel says of a datagram.
	maxOOB = 64
	// roomWait is how long a sender waits for room, in milliseconds.
	roomWait = 100
)

// listenCrypt takes the port, in the thread's namespace.
func listenCrypt(at netip.AddrPort) (*cryptSocket, error) {
	domain, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	if at.Addr().Is4() {
		domain, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &cryptSocket{fd: fd}
	if err = setCryptSocket(fd, domain); err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, address))
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func setCryptSocket(fd, domain int) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, arrivedBuffer) // a smaller one will do
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sentBuffer)
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // an older kernel does without
	// An overlay with a larger MTU than fits goes in fragments, as others do.
	if domain == unix.AF_INET {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT))
}

// close comes when nobody uses the socket any more.
func (s *cryptSocket) close() error { return unix.Close(s.fd) }

// message is what a system call is told of datagrams. It is used by one goroutine,
// and stays where it is.
type message struct {
	socket *cryptSocket
	iov    unix.Iovec
	header unix.Msghdr
	oob    [maxOOB]byte
	name   [unix.SizeofSockaddrInet6]byte
}

func (m *message) call(trap uintptr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(trap, uintptr(m.socket.fd), uintptr(unsafe.Pointer(&m.header)), 0)
	return int(n), errno
}

func (m *message) set(b []byte, name, oob int) {
	m.iov.Base = &b[0]
	m.iov.SetLen(len(b))
	m.header = unix.Msghdr{Name: &m.name[0], Namelen: uint32(name), Iov: &m.iov}
	m.header.SetIovlen(1)
	if oob > 0 {
		m.header.Control = &m.oob[0]
		m.header.SetControllen(oob)
	}
}

// sender sends datagrams from a socket to a port of other nodes. It is used by one
// goroutine.
type sender struct {
	socket *cryptSocket
	port   uint16
	n      int // messages that are queued
	queued [crypt.Kept]struct {
		message
		data []byte
		size int
	}
	vector [crypt.Kept]mmsghdr
}

// mmsghdr is struct mmsghdr, sendmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
	_      [4]byte
}

func (s *cryptSocket) sender(port uint16) *sender { return &sender{socket: s, port: port} }

// add has datagrams of a size go, the last may be shorter: with those that are added
// after it, when there are as many as the kernel is given at once, or with flush. So
// who receives them is woken once for all. data is not changed until then.
func (s *sender) add(to netip.Addr, data []byte, size int) {
	m := &s.queued[s.n]
	m.socket, m.data, m.size = s.socket, data, size
	name, oob := m.putName(netip.AddrPortFrom(to, s.port)), 0
	if len(data) > size {
		oob = m.putSegment(uint16(size))
	}
	m.set(data, name, oob)
	if s.n++; s.n == len(s.queued) {
		s.flush()
	}
}

// flush has all go that were added. What the kernel doesn't take within a moment is
// lost.
func (s *sender) flush() {
	for i := range s.n {
		s.vector[i].header = s.queued[i].header
	}
	for i := 0; i < s.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.socket.fd), uintptr(unsafe.Pointer(&s.vector[i])), uintptr(s.n-i), 0, 0, 0)
		if errno == 0 {
			i += int(n)
			continue
		}
		s.again(i, errno)
		i++
	}
	s.n = 0
}

// again handles a message that the kernel did not take.
func (s *sender) again(i int, errno unix.Errno) {
	m := &s.queued[i]
	if errno == unix.EAGAIN {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.socket.fd), Events: unix.POLLOUT}}, roomWait)
		_, errno = m.call(unix.SYS_SENDMSG)
	}
	switch errno {
	case unix.EINVAL, unix.EMSGSIZE, unix.EIO: // larger than what the device takes
		for rest := m.data; len(m.data) > m.size && len(rest) > 0; rest = rest[min(m.size, len(rest)):] {
			m.set(rest[:min(m.size, len(rest))], int(m.header.Namelen), 0)
			_, _ = m.call(unix.SYS_SENDMSG)
		}
	}
}

// putName says who is written to, and returns the length of that.
func (m *message) putName(to netip.AddrPort) int {
	binary.BigEndian.PutUint16(m.name[2:], to.Port())
	if to.Addr().Is4() {
		binary.NativeEndian.PutUint16(m.name[:], unix.AF_INET)
		a := to.Addr().As4()
		copy(m.name[unsafe.Offsetof(unix.RawSockaddrInet4{}.Addr):], a[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(m.name[:], unix.AF_INET6)
	a := to.Addr().As16()
	copy(m.name[unsafe.Offsetof(unix.RawSockaddrInet6{}.Addr):], a[:])
	return unix.SizeofSockaddrInet6
}

// readName says who has written.
func (m *message) readName() netip.Addr {
	if binary.NativeEndian.Uint16(m.name[:]) == unix.AF_INET {
		return netip.AddrFrom4([4]byte(m.name[unsafe.Offsetof(unix.RawSockaddrInet4{}.Addr):]))
	}
	return netip.AddrFrom16([16]byte(m.name[unsafe.Offsetof(unix.RawSockaddrInet6{}.Addr):])).Unmap()
}

// putSegment has the kernel cut what is sent into datagrams of a size, and returns
// the length of that.
func (m *message) putSegment(size uint16) int {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&m.oob[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(int(unsafe.Sizeof(size))))
	binary.NativeEndian.PutUint16(m.oob[unix.CmsgLen(0):], size)
	return unix.CmsgSpace(int(unsafe.Sizeof(size)))
}

// readSegment is how long the datagrams are that the kernel put together, of n bytes
// in all.
func (m *message) readSegment(n int) int {
	const size = 4
	if int(m.header.Controllen) >= unix.CmsgLen(size) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&m.oob[0]))
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO {
			return int(binary.NativeEndian.Uint32(m.oob[unix.CmsgLen(0):]))
		}
	}
	return max(n, 1)
}

// receiver takes what arrives at a socket.
type receiver struct {
	m   message
	buf []byte
}

func (s *cryptSocket) receiver() *receiver {
	return &receiver{m: message{socket: s}, buf: make([]byte, 1<<16)}
}

// receive returns datagrams from a node, of a size, the last may be shorter; false when
// there are none. data is valid until the next call.
func (r *receiver) receive() (from netip.Addr, data []byte, size int, ok bool) {
	for {
		r.m.set(r.buf, len(r.m.name), len(r.m.oob))
		switch n, errno := r.m.call(unix.SYS_RECVMSG); errno {
		case 0:
			return r.m.readName(), r.buf[:n], r.m.readSegment(n), true
		case unix.EAGAIN:
			return netip.Addr{}, nil, 0, false
		} // else the network said something of a packet that was sent
	}
}
