package rpc

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// raftProtocol is the application protocol (ALPN) of connections that carry
// raft's messages and nothing else, on the port of the others. A message on them
// is handed from goroutine to goroutine half as often as on a gRPC stream, and
// that is most of what a small message costs.
const raftProtocol = "legion-raft/1"

const (
	// maxFrame bounds what is received at once: a frame's messages and the rest of
	// it.
	maxFrame = 2 << 20
	// maxReceipt bounds what comes back for it.
	maxReceipt = 4 << 10
	// writeTimeout is how long a frame may wait for room on the way to the other
	// manager, and half of it how long it may at least. With less than a megabyte in
	// that time raft can't work.
	writeTimeout = 10 * time.Second
	// readTimeout is how long nothing may come from a manager that sends something
	// each pingEvery.
	readTimeout  = 15 * time.Second
	wireBuffer   = 16 << 10
	roomyQueue   = 4 << 10 // bytes
	lengthHeader = 4
)

// wire carries protobuf messages over a connection, each after its length. One
// goroutine may send while another one receives.
type wire struct {
	conn net.Conn
	raw  syscall.RawConn // of a connection that was dialled; else nil
	r    *bufio.Reader
	in   []byte
	out  []byte
	due  time.Time // the read deadline
	end  time.Time // the write deadline
}

func newWire(conn net.Conn) *wire {
	return &wire{conn: conn, r: bufio.NewReaderSize(conn, wireBuffer)}
}

// dialRaft connects to the manager at addr.
func dialRaft(ctx context.Context, addr string, c *Credentials) (*wire, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	config := c.ClientConfig(ca.ManagerOU)
	config.NextProtos = []string{raftProtocol}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("%w (%w)", err, conn.Close())
	}
	w := newWire(secure)
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	return w, nil
}

// roomy reports whether size bytes can certainly be sent without a wait: the kernel
// takes more than ten times as much, and the other end has acknowledged nearly all
// that was sent.
func (w *wire) roomy(size int) bool {
	if w.raw == nil || size > wireBuffer {
		return false
	}
	waiting, err := 0, error(nil)
	if e := w.raw.Control(func(fd uintptr) { waiting, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil {
		return false
	}
	return err == nil && waiting <= roomyQueue
}

// send encodes and writes a message.
func (w *wire) send(m proto.Message) (err error) {
	w.out = append(w.out[:0], make([]byte, lengthHeader)...)
	if w.out, err = (proto.MarshalOptions{}).MarshalAppend(w.out, m); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(w.out, uint32(len(w.out)-lengthHeader))
	if now := time.Now(); w.end.Sub(now) < writeTimeout/2 { // timers cost more than a look at the clock
		w.end = now.Add(writeTimeout)
		if err := w.conn.SetWriteDeadline(w.end); err != nil {
			return err
		}
	}
	_, err = w.conn.Write(w.out)
	if cap(w.out) > wireBuffer {
		w.out = nil
	}
	return err
}

// receive reads a message of at most limit bytes.
func (w *wire) receive(m proto.Message, limit uint32) error {
	if now := time.Now(); w.due.Sub(now) < readTimeout/2 {
		w.due = now.Add(readTimeout)
		if err := w.conn.SetReadDeadline(w.due); err != nil {
			return err
		}
	}
	var header [lengthHeader]byte
	if _, err := io.ReadFull(w.r, header[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(header[:])
	if n > limit {
		return api.Errorf(api.ResourceExhausted, "a frame of %d bytes from another manager: at most %d", n, limit)
	}
	if uint32(cap(w.in)) < n {
		w.in = make([]byte, n)
	}
	body := w.in[:n]
	if cap(w.in) > wireBuffer {
		w.in = nil
	}
	if _, err := io.ReadFull(w.r, body); err != nil {
		return err
	}
	proto.Reset(m)
	if err := proto.Unmarshal(body, m); err != nil {
		return api.Errorf(api.Invalid, "a frame from another manager: %w", err)
	}
	return nil
}

// Close ends what goes on.
func (w *wire) Close() error { return w.conn.Close() }
