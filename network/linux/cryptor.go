package linux

import (
	"fmt"
	"log/slog"
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
	node   *crypt.Node
	log    *slog.Logger
	socket *cryptSocket
	at     netip.AddrPort
	taps   map[string]*tap // by overlay

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

// openCryptor takes the port of encrypted overlays; the thread is in the host's
// namespace.
func openCryptor(at netip.AddrPort, node *crypt.Node, log *slog.Logger) (*cryptor, error) {
	socket, err := listenCrypt(at)
	if err != nil {
		return nil, fmt.Errorf("UDP port %d, for encrypted networks: %w", at.Port(), err)
	}
	c := &cryptor{node: node, log: log, socket: socket, at: at, taps: map[string]*tap{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.byVNI.Store(&map[uint32]*tap{})
	c.wg.Go(c.receive)
	c.wg.Go(c.tick)
	return c, nil
}

// close ends all of it; the devices go with it.
func (c *cryptor) close() {
	close(c.done)
	c.socket.hangUp()
	for id := range c.taps {
		c.drop(id)
	}
	c.wg.Wait()
	_ = c.socket.close()
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
		_, _, _ = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&t.iov[0])), uintptr(len(t.iov)))
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
	w := c.socket.sender(c.at.Port())
	for {
		select {
		case <-t.C:
		case <-c.wake:
		case <-c.done:
			return
		}
		out, next := c.node.Tick()
		hellos(w, out)
		t.Stop()
		if !next.IsZero() {
			t.Reset(time.Until(next))
		}
	}
}

// hellos sends what may be lost.
func hellos(w *sender, out []crypt.Packet) {
	for _, p := range out {
		w.send(p.To, p.Data, len(p.Data))
	}
}

// send seals what the bridge gives a device, until that is gone.
func (c *cryptor) send(t *tap) {
	defer t.ended.Store(true)
	s, w := c.node.NewSealer(), c.socket.sender(c.at.Port())
	frame := make([]byte, crypt.MaxFrame)
	var n int
	var errno unix.Errno
	take := func(fd uintptr) bool {
		if n, errno = rawRead(fd, frame); errno != unix.EAGAIN {
			return true
		}
		if to, data, size, ok := s.Flush(); ok { // nothing follows soon
			w.send(to, data, size)
		}
		return false
	}
	for {
		if t.raw.Read(take) != nil {
			return
		}
		if errno != 0 {
			c.log.Debug("network: an encrypted overlay's device is gone", "error", errno)
			return
		}
		s.Begin(t.vni, frame[:n])
		for to, data, size, ok := s.Next(); ok; to, data, size, ok = s.Next() {
			w.send(to, data, size)
		}
	}
}

// receive opens what comes from other nodes.
func (c *cryptor) receive() {
	o, r, w := c.node.NewOpener(), c.socket.receiver(), c.socket.sender(c.at.Port())
	for {
		from, data, size, ok := r.receive()
		if !ok {
			return
		}
		frames, out, tick := o.Open(from, data, size)
		taps := *c.byVNI.Load()
		for i := range frames {
			if t := taps[frames[i].VNI]; t != nil {
				t.write(frames[i].Parts)
			}
		}
		hellos(w, out)
		if tick {
			c.poke()
		}
	}
}

// rawRead reads from what doesn't block.
func rawRead(fd uintptr, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
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
