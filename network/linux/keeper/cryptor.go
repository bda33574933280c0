package keeper

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network/crypt"
)

// cryptor carries encrypted overlays' frames between TAP devices and a UDP socket.
// It holds both: without the process nothing flows. Its methods are called by one
// goroutine.
type cryptor struct {
	node     *crypt.Node
	log      *slog.Logger
	socket   *cryptSocket
	at       netip.AddrPort
	carriers []*carrier // the first has the socket
	bulk     *bulk
	taps     map[string]*tap // by overlay

	byVNI atomic.Pointer[map[uint32]*tap]
	wake  chan struct{} // for tick
	done  chan struct{}
	wg    sync.WaitGroup
}

// tap is a device that the bridge of an overlay gives frames to. Its system calls
// are as the socket's.
type tap struct {
	vni     uint32
	fd      int
	carrier int          // that reads
	iov     []unix.Iovec // of write
}

// openCryptor takes the port of encrypted overlays.
func openCryptor(at netip.AddrPort, node *crypt.Node, log *slog.Logger) (*cryptor, error) {
	socket, err := listenCrypt(at)
	if err != nil {
		return nil, fmt.Errorf("UDP port %d, for encrypted networks: %w", at.Port(), err)
	}
	c := &cryptor{node: node, log: log, socket: socket, at: at, bulk: newBulk(schedule), taps: map[string]*tap{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.byVNI.Store(&map[uint32]*tap{})
	c.wg.Go(c.tick)
	if c.carriers, err = newCarriers(c.bulk); err == nil {
		err = c.carriers[0].watch(socket.fd, c.receiving())
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// close ends all of it; the devices go with it.
func (c *cryptor) close() {
	close(c.done)
	for id := range c.taps {
		c.drop(id)
	}
	for _, r := range c.carriers {
		r.close()
	}
	c.bulk.close()
	c.wg.Wait()
	_ = c.socket.close()
}

// add takes a device.
func (c *cryptor) add(id string, t *tap) error {
	c.drop(id)
	t.carrier = c.idlest()
	if err := c.carriers[t.carrier].watch(t.fd, c.sending(t)); err != nil {
		return err
	}
	c.taps[id] = t
	c.publish()
	return nil
}

// idlest is the carrier that has the least to do.
func (c *cryptor) idlest() int {
	loads := make([]int, len(c.carriers))
	loads[0] = 1 // the socket
	for _, t := range c.taps {
		loads[t.carrier]++
	}
	return slices.Index(loads, slices.Min(loads))
}

// drop gives a device up. It is gone when drop returns.
func (c *cryptor) drop(id string) {
	t := c.taps[id]
	if t == nil {
		return
	}
	delete(c.taps, id)
	c.publish()
	for _, r := range c.carriers { // one reads, another may write
		r.forget(t.fd)
	}
	_ = unix.Close(t.fd)
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
		w.add(p.To, p.Data, len(p.Data))
	}
	w.flush()
}

// sending returns what seals what the bridge gives a device, until that is gone.
func (c *cryptor) sending(t *tap) func() int {
	s, w, frame := c.node.NewSealer(), c.socket.sender(c.at.Port()), make([]byte, crypt.MaxFrame)
	return func() (carried int) {
		for range turn {
			n, errno := rawRead(t.fd, frame)
			if errno == unix.EAGAIN {
				break
			}
			if errno != 0 {
				c.log.Debug("network: an encrypted overlay's device is gone", "error", errno)
				c.carriers[t.carrier].remove(t.fd)
				break
			}
			carried += n
			s.Begin(t.vni, frame[:n])
			for to, data, size, ok := s.Next(); ok; to, data, size, ok = s.Next() {
				w.add(to, data, size)
			}
		}
		if to, data, size, ok := s.Flush(); ok { // nothing follows soon
			w.add(to, data, size)
		}
		w.flush()
		return carried
	}
}

// receiving returns what opens what comes from other nodes.
func (c *cryptor) receiving() func() int {
	o, r, w := c.node.NewOpener(), c.socket.receiver(), c.socket.sender(c.at.Port())
	return func() (carried int) {
		for range turn {
			from, data, size, ok := r.receive()
			if !ok {
				break
			}
			carried += len(data)
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
		return carried
	}
}

// rawRead reads from what doesn't block.
func rawRead(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), errno
}

// write gives the bridge a frame. What is not taken is lost, as on any wire.
func (t *tap) write(parts [][]byte) {
	t.iov = t.iov[:0]
	for _, p := range parts {
		v := unix.Iovec{Base: &p[0]}
		v.SetLen(len(p))
		t.iov = append(t.iov, v)
	}
	_, _, _ = unix.RawSyscall(unix.SYS_WRITEV, uintptr(t.fd), uintptr(unsafe.Pointer(&t.iov[0])), uintptr(len(t.iov)))
}
