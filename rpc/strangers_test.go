package rpc

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legion-swarm/legion/api"
)

// from is a connection that comes from an address.
type from struct {
	net.Conn
	addr net.TCPAddr
}

func (c *from) RemoteAddr() net.Addr { return &c.addr }

func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s strangers
		call := func(host byte) (conn net.Conn, other net.Conn, err error) {
			here, there := net.Pipe()
			conn, err = s.admit(&from{Conn: here, addr: net.TCPAddr{IP: net.IPv4(192, 0, 2, host), Port: 1}})
			return conn, there, err
		}
		for i := range maxStrangersFromHost {
			if _, _, err := call(1); err != nil {
				t.Fatal(i, err)
			}
		}
		if _, _, err := call(1); !api.Is(err, api.ResourceExhausted) {
			t.Errorf("one too many from an address: %v", err)
		}
		for i := maxStrangersFromHost; i < maxStrangers; i++ {
			if _, _, err := call(byte(2 + i%100)); err != nil {
				t.Fatal(i, err)
			}
		}
		if _, _, err := call(200); !api.Is(err, api.ResourceExhausted) {
			t.Errorf("one too many: %v", err)
		}
		time.Sleep(strangerTime)
		synctest.Wait()
		conn, other, err := call(1)
		if err != nil {
			t.Fatalf("after all others' time: %v", err)
		}
		if s.count != 1 || len(s.from) != 1 {
			t.Errorf("%d from %v are counted", s.count, s.from)
		}
		go func() { _, _ = other.Write(make([]byte, maxStrangerSends+1)) }()
		n, err := io.Copy(io.Discard, conn)
		if n != maxStrangerSends || !api.Is(err, api.ResourceExhausted) {
			t.Errorf("%d bytes, %v", n, err)
		}
		_ = conn.Close()
		_ = conn.Close()
		if s.count != 0 || len(s.from) != 0 {
			t.Errorf("%d from %v are left", s.count, s.from)
		}
	})
}
