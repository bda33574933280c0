package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Serve answers datagrams with who it is and whom it saw, and reads streams,
// both at address, until ctx is done.
func Serve(ctx context.Context, address, name string) error {
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return errors.Join(err, u.Close())
	}
	var wait sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _, _ = u.Close(), l.Close() })
	defer stop()
	wait.Go(func() {
		defer func() { _ = u.Close() }()
		for buf := make([]byte, maxDatagram); ; {
			_, from, err := u.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = u.WriteTo(fmt.Appendf(nil, "hello from %s, to %s\n", name, from), from)
			}
		}
	})
	wait.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go sink(c.(*net.TCPConn)) // it ends with its connection
			}
		}
	})
	wait.Wait()
	return nil
}
