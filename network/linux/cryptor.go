package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network/crypt"
)

// cryptor carries encrypted overlays' frames between TAP devices and a UDP socket.
// It holds both: without the process nothing flows. Methods but counts are called
// by Set alone.
type cryptor struct {
	node *crypt.Node
	log  *slog.Logger
	conn *net.UDPConn
	at   netip.AddrPort
	taps map[string]*tap // by overlay

	byVNI atomic.Pointer[map[uint32]*tap]
	wake  chan struct{} // for tick
	done  chan struct{}
	wg    sync.WaitGroup
}

// tap is a device that the bridge of an overlay gives frames to.
type tap struct {
	index int // of the device
	vni   uint32
	f     *os.File
	raw   syscall.RawConn
	ended atomic.Bool // its device is gone

	// Of write, which one goroutine calls.
	iov []unix.Iovec
	put func(fd uintptr) bool
}

const (
	// cryptBuffer is what the socket may hold, in bytes: some 50 frames of the
	// largest kind.
	cryptBuffer = 4 << 20
	// maxOOB is enough for what the kernel says of a datagram.
	maxOOB = 64
)

// openCryptor takes the port of encrypted overlays; the thread is in the host's
// namespace.
func openCryptor(at netip.AddrPort, node *crypt.Node, log *slog.Logger) (*cryptor, error) {
	conn, err := net.ListenUDP(udpNetwork(at.Addr()), net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("UDP port %d, for encrypted networks: %w", at.Port(), err)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) { inner = cryptSocket(int(fd), at.Addr().Is4()) })
		err = errors.Join(err, inner)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("UDP port %d, for encrypted networks: %w", at.Port(), err)
	}
	c := &cryptor{node: node, log: log, conn: conn, at: at, taps: map[string]*tap{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.byVNI.Store(&map[uint32]*tap{})
	c.wg.Go(c.receive)
	c.wg.Go(c.tick)
	return c, nil
}

func cryptSocket(fd int, four bool) error {
	for _, o := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, cryptBuffer) // a smaller one will do
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // an older kernel does without
	// An overlay with a larger MTU than fits goes in fragments, as others do.
	if four {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT)
}

// close ends all of it; the devices go with it.
func (c *cryptor) close() {
	close(c.done)
	_ = c.conn.Close()
	for id := range c.taps {
		c.drop(id)
	}
	c.wg.Wait()
}

// add takes a device.
func (c *cryptor) add(id string, t *tap) error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	t.raw = raw
	t.put = func(fd uintptr) bool {
		// What is not taken is lost, as on any wire.
		_, _, _ = unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&t.iov[0])), uintptr(len(t.iov)))
		return true
	}
	c.drop(id)
	c.taps[id] = t
	c.publish()
	c.wg.Go(func() { c.send(t) })
	return nil
}

// drop gives a device up.
func (c *cryptor) drop(id string) {
	if t := c.taps[id]; t != nil {
		delete(c.taps, id)
		c.publish()
		_ = t.f.Close()
	}
}

func (c *cryptor) publish() {
	m := make(map[uint32]*tap, len(c.taps))
	for _, t := range c.taps {
		m[t.vni] = t
	}
	c.byVNI.Store(&m)
}

// poke has tick look for what is due.
func (c *cryptor) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// tick sends hellos when they are due.
func (c *cryptor) tick() {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-c.wake:
		case <-c.done:
			return
		}
		out, next := c.node.Tick()
		c.hellos(out)
		t.Stop()
		if !next.IsZero() {
			t.Reset(time.Until(next))
		}
	}
}

// hellos sends what may be lost.
func (c *cryptor) hellos(out []crypt.Packet) {
	for _, p := range out {
		_, _ = c.conn.WriteToUDPAddrPort(p.Data, netip.AddrPortFrom(p.To, c.at.Port()))
	}
}

// send seals what the bridge gives a device, until that is gone.
func (c *cryptor) send(t *tap) {
	defer t.ended.Store(true)
	s := c.node.NewSealer()
	frame := make([]byte, crypt.MaxFrame)
	oob := segmentMessage()
	for {
		n, err := t.f.Read(frame)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				c.log.Debug("network: an encrypted overlay's device is gone", "error", err)
			}
			return
		}
		s.Begin(t.vni, frame[:n])
		for {
			to, data, size, ok := s.Next()
			if !ok {
				break
			}
			c.write(to, data, size, oob)
		}
	}
}

// segmentMessage has the kernel cut what is sent into datagrams; write fills in
// their size.
func segmentMessage() []byte {
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	return oob
}

// write sends datagrams of a size, the last may be shorter. What the kernel doesn't
// take is lost.
func (c *cryptor) write(to netip.Addr, data []byte, size int, oob []byte) {
	addr := netip.AddrPortFrom(to, c.at.Port())
	if len(data) > size {
		binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
		_, _, err := c.conn.WriteMsgUDPAddrPort(data, oob, addr)
		if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EIO) {
			return
		}
	}
	for ; len(data) > 0; data = data[min(size, len(data)):] { // larger than what the device takes
		_, _ = c.conn.WriteToUDPAddrPort(data[:min(size, len(data))], addr)
	}
}

// receive opens what comes from other nodes.
func (c *cryptor) receive() {
	o := c.node.NewOpener()
	buf, oob := make([]byte, 1<<16), make([]byte, maxOOB)
	for {
		n, m, _, from, err := c.conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // what the network says of a packet that was sent
			continue
		}
		frames, hellos, tick := o.Open(from.Addr().Unmap(), buf[:n], segmentSize(oob[:m], n))
		taps := *c.byVNI.Load()
		for i := range frames {
			if t := taps[frames[i].VNI]; t != nil {
				t.write(frames[i].Parts)
			}
		}
		c.hellos(hellos)
		if tick {
			c.poke()
		}
	}
}

// segmentSize is how long the datagrams are that the kernel put together.
func segmentSize(oob []byte, n int) int {
	const size = 4
	if len(oob) >= unix.CmsgLen(size) {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		if h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO {
			return int(binary.NativeEndian.Uint32(oob[unix.CmsgLen(0):]))
		}
	}
	return max(n, 1)
}

// write gives the bridge a frame.
func (t *tap) write(parts [][]byte) {
	t.iov = t.iov[:0]
	for _, p := range parts {
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(len(p))
		t.iov = append(t.iov, v)
	}
	_ = t.raw.Write(t.put) // closed: its overlay is gone
}
