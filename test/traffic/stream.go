package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Stream is a load of TCP streams to Serve, as fast as they go.
type Stream struct {
	Address string
	Streams int // side by side; zero: 1
	For     time.Duration
	Timeout time.Duration // to connect, and for the last bytes to arrive; zero: 3 s
}

const block = 128 << 10

// Run sends for so long and returns how much arrived.
func (s Stream) Run(ctx context.Context) (*Report, error) {
	rec := newRecorder()
	var wait sync.WaitGroup
	var mu sync.Mutex
	var errs error
	for range max(s.Streams, 1) {
		wait.Go(func() {
			n, err := s.one(ctx)
			mu.Lock()
			defer mu.Unlock()
			rec.r.Bytes += n
			errs = errors.Join(errs, err)
		})
	}
	wait.Wait()
	return rec.report(), errs
}

func (s Stream) one(ctx context.Context) (int64, error) {
	timeout := Pace{Timeout: s.Timeout}.timeout()
	c, err := net.DialTimeout("tcp", s.Address, timeout)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	end := time.Now().Add(s.For)
	if err := c.SetDeadline(end.Add(timeout)); err != nil {
		return 0, err
	}
	for b := make([]byte, block); time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := c.Write(b); err != nil {
			return 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	var arrived int64
	err = binary.Read(c, binary.BigEndian, &arrived)
	return arrived, err
}

// sink reads all and says how much it was.
func sink(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	if n, err := drain(c); err == nil {
		_ = binary.Write(c, binary.BigEndian, n)
	}
}

// drain reads to the end, block by block, and returns how much it was. Neither side
// may copy by itself: io.Discard would read 8 KiB at a time.
func drain(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, block))
}
