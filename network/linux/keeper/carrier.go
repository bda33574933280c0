package keeper

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// carrier is a goroutine that carries packets: it sleeps until there is something to
// read of any of its descriptors, and has that handled. What comes while it works
// wakes nobody, and what it causes itself, such as answers, it finds before it sleeps.
type carrier struct {
	set     int                  // epoll, of all descriptors
	bell    int                  // eventfd, of do
	arrival *arrival             // of set
	ready   map[int32]func() int // handlers, by descriptor
	rate    rate
	ended   bool

	mu   sync.Mutex
	todo []func() // of do
	done chan struct{}
}

const (
	// maxEvents is of how many descriptors it is told at once.
	maxEvents = 16
	// turn is how much is handled of a descriptor, in packets, before it is another's
	// turn.
	turn = 64
	// maxCarriers is how many there are at most.
	maxCarriers = 4
)

// newCarriers starts one for each processor that the daemon uses, so that what is
// sealed does not wait for what is opened.
func newCarriers(b *bulk) (all []*carrier, err error) {
	for range min(runtime.GOMAXPROCS(0), maxCarriers) {
		c, err := newCarrier(b)
		if err != nil {
			for _, c := range all {
				c.close()
			}
			return nil, fmt.Errorf("start what carries packets: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

func newCarrier(b *bulk) (c *carrier, err error) {
	c = &carrier{set: -1, bell: -1, ready: map[int32]func() int{}, rate: rate{bulk: b}, done: make(chan struct{})}
	if c.set, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if c.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		err = os.NewSyscallError("eventfd2", err)
	}
	if err == nil {
		err = c.put(c.bell, c.answer)
	}
	if err == nil {
		c.arrival, err = newArrival(c.set)
	}
	if err != nil {
		return nil, errors.Join(err, c.release())
	}
	go c.run()
	return c, nil
}

// release gives up what it has open.
func (c *carrier) release() (err error) {
	if c.arrival != nil {
		err = c.arrival.close()
	}
	for _, fd := range []int{c.set, c.bell} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

// watch has it call ready, from its goroutine, when there is something to read of a
// descriptor. ready does not block, and returns how many bytes it has carried.
func (c *carrier) watch(fd int, ready func() int) (err error) {
	c.do(func() { err = c.put(fd, ready) })
	return err
}

// put is watch, by its goroutine.
func (c *carrier) put(fd int, ready func() int) error {
	err := unix.EpollCtl(c.set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	if err == nil {
		c.ready[int32(fd)] = ready
	}
	return os.NewSyscallError("epoll_ctl", err)
}

// forget ends what watch has begun: nothing is handled any more when it returns, nor
// anything that was under way. It may be of a descriptor that another carrier has.
func (c *carrier) forget(fd int) { c.do(func() { c.remove(fd) }) }

// remove is forget, by its goroutine.
func (c *carrier) remove(fd int) {
	if c.ready[int32(fd)] != nil {
		delete(c.ready, int32(fd))
		_ = unix.EpollCtl(c.set, unix.EPOLL_CTL_DEL, fd, nil)
	}
}

// do has its goroutine call a function between two others, and returns when it has.
func (c *carrier) do(f func()) {
	called := make(chan struct{})
	c.mu.Lock()
	c.todo = append(c.todo, func() {
		f()
		close(called)
	})
	c.mu.Unlock()
	one := [8]byte{1}
	_, _ = unix.Write(c.bell, one[:])
	<-called
}

func (c *carrier) answer() int {
	var b [8]byte
	_, _ = unix.Read(c.bell, b[:])
	c.mu.Lock()
	todo := c.todo
	c.todo = nil
	c.mu.Unlock()
	for _, f := range todo {
		f()
	}
	return 0
}

// close ends it. Nobody calls another method meanwhile or later.
func (c *carrier) close() {
	c.do(func() { c.ended = true })
	<-c.done
}

func (c *carrier) run() {
	defer close(c.done)
	defer func() { _ = c.release() }()
	for events := make([]unix.EpollEvent, maxEvents); !c.ended; {
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(c.set), uintptr(unsafe.Pointer(&events[0])), maxEvents, 0, 0, 0)
		if errno != 0 || n == 0 {
			c.arrival.wait()
			continue
		}
		carried := 0
		for _, e := range events[:n] {
			if f := c.ready[e.Fd]; f != nil { // not removed meanwhile
				carried += f()
			}
		}
		c.rate.carry(carried, time.Now())
	}
}
