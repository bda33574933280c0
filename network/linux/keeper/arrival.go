package keeper

import (
	"errors"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arrival is how a goroutine sleeps until there is something to read of a descriptor.
// The descriptor is in an epoll set of its own, and that is in Go's poller: with the
// descriptor itself there, whatever came while the goroutine was at work would wake a
// thread of the daemon for nothing. The set is told each time that it is to say so,
// once (EPOLLONESHOT). It is used by one goroutine.
type arrival struct {
	fd    int
	set   *os.File
	raw   syscall.RawConn
	armed bool
	event unix.EpollEvent
	look  func(set uintptr) bool
}

// newArrival is of a descriptor that stays open for longer than it.
func newArrival(fd int) (*arrival, error) {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	err = os.NewSyscallError("epoll_ctl", unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(fd)}))
	err = errors.Join(err, unix.SetNonblock(set, true)) // has Go's poller take it
	a := &arrival{fd: fd, set: os.NewFile(uintptr(set), "epoll")}
	a.look = a.lookOnce
	if err == nil {
		a.raw, err = a.set.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, a.set.Close())
	}
	return a, nil
}

// wait returns when there is something to read, also if it has come before.
func (a *arrival) wait() {
	a.armed = false
	_ = a.raw.Read(a.look) // it is not closed meanwhile
}

// lookOnce arms the set, and when it is called again, after the poller has heard of
// it, takes what the set says.
func (a *arrival) lookOnce(set uintptr) bool {
	if !a.armed {
		a.armed, a.event = true, unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(a.fd)}
		_, _, _ = unix.RawSyscall6(unix.SYS_EPOLL_CTL, set, unix.EPOLL_CTL_MOD, uintptr(a.fd), uintptr(unsafe.Pointer(&a.event)), 0, 0)
		return false
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, set, uintptr(unsafe.Pointer(&a.event)), 1, 0, 0, 0)
	return errno == 0 && n > 0
}

// close is for when nobody waits.
func (a *arrival) close() error { return a.set.Close() }
