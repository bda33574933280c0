package keeper

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network/dns"
)

// threads move to other network namespaces and back.
type threads struct{ own *os.File }

func newThreads() (*threads, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open this process's namespace: %w", err)
	}
	return &threads{f}, nil
}

// in runs f on a thread in a namespace. A thread that can't come back ends.
func (t *threads) in(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(ns, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		if unix.Setns(int(t.own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// inside reaches servers from the namespace that a socket is in.
func (t *threads) inside(c *net.UDPConn) dns.Dial {
	return func(ctx context.Context, proto string, server netip.AddrPort) (r net.Conn, err error) {
		raw, err := c.SyscallConn()
		if err != nil {
			return nil, err
		}
		ns := -1
		if e := raw.Control(func(fd uintptr) { ns, err = unix.IoctlRetInt(int(fd), unix.SIOCGSKNS) }); e != nil {
			return nil, e
		}
		if err != nil {
			return nil, fmt.Errorf("the namespace of a socket: %w", err)
		}
		defer unix.Close(ns) //nolint:errcheck // nothing was written
		err = t.in(ns, func() error {
			r, err = (&net.Dialer{}).DialContext(ctx, proto, server.String())
			return err
		})
		return r, err
	}
}
