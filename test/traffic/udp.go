package traffic

import (
	"context"
	"fmt"
	"net"
	"time"
)

// Datagrams is a load of datagrams that Serve answers.
type Datagrams struct {
	Pace
	Address string
	// Kept is how many of the clients keep their socket.
	Kept int
}

const maxDatagram = 1500

// Run sends datagrams until ctx is done or all are answered.
func (d Datagrams) Run(ctx context.Context) (*Report, error) {
	rec := newRecorder()
	d.run(ctx, func(n int, next func() bool) {
		var conn net.Conn
		buf := make([]byte, maxDatagram)
		nth := 0
		drop := func() {
			if conn != nil {
				_ = conn.Close()
				conn, nth = nil, 0
			}
		}
		defer drop()
		for next() {
			start := time.Now()
			if conn == nil {
				var err error
				if conn, err = net.DialTimeout("udp", d.Address, d.timeout()); err != nil {
					rec.failed(Failure{At: start, Stage: "connect", Nth: 1, Reason: err.Error()})
					continue
				}
				rec.connected(false)
			}
			nth++
			server, client, err := exchange(conn, buf, d.timeout())
			if err != nil {
				rec.failed(Failure{At: time.Now(), Stage: "receive", Nth: nth, Local: conn.LocalAddr().String(), Reason: err.Error()})
				drop()
				continue
			}
			rec.done(start, server, client)
			if n >= d.Kept {
				drop()
			}
		}
	})
	return rec.report(), nil
}

// exchange sends one datagram and waits for its answer.
func exchange(conn net.Conn, buf []byte, timeout time.Duration) (server, client string, err error) {
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", "", err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return "", "", err
	}
	n, err := conn.Read(buf)
	if err != nil {
		return "", "", err
	}
	if server, client = who(buf[:n]); server == "" {
		return "", "", fmt.Errorf("the answer is %q", buf[:n])
	}
	return server, client, nil
}
