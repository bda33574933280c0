package rpc

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// input is a connection on which only these bytes come.
type input struct {
	net.Conn
	*bytes.Reader
}

func (i input) Read(p []byte) (int, error) { return i.Reader.Read(p) }

func (input) SetReadDeadline(time.Time) error { return nil }

// TestWire: what is sent arrives, of any size up to the limit.
func TestWire(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close() //nolint:errcheck // it can't fail
	defer b.Close() //nolint:errcheck // it can't fail
	from, to := newWire(a), newWire(b)
	for _, size := range []int{0, 1, wireBuffer, frameSize, 10} {
		want := &swarmpb.RaftFrame{From: 7, Messages: [][]byte{make([]byte, size), []byte("x")}}
		sent := make(chan error, 1)
		go func() { sent <- from.send(want) }()
		var got swarmpb.RaftFrame
		if err := to.receive(&got, maxFrame); err != nil || !proto.Equal(&got, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	go func() { _ = from.send(&swarmpb.RaftFrame{Part: make([]byte, maxReceipt)}) }() // it is cut off
	if err := to.receive(&swarmpb.RaftReceipt{}, maxReceipt); !api.Is(err, api.ResourceExhausted) {
		t.Errorf("a receipt that is too large: %v", err)
	}
}

// FuzzWire: whatever comes, no more is kept than may come, and the end is found.
func FuzzWire(f *testing.F) {
	frame, err := proto.Marshal(&swarmpb.RaftFrame{From: 1, Messages: [][]byte{{1, 2}}, Addr: "a:1"})
	if err != nil {
		f.Fatal(err)
	}
	whole := append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
	f.Add(whole)
	f.Add(append(whole, whole[:6]...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		w := newWire(input{Reader: bytes.NewReader(b)})
		for n := 0; ; n++ {
			if w.receive(&swarmpb.RaftFrame{}, maxFrame) != nil {
				return
			}
			if n > len(b) {
				t.Fatal("more frames than bytes")
			}
			if cap(w.in) > maxFrame {
				t.Fatalf("%d bytes are kept", cap(w.in))
			}
		}
	})
}

// TestRoomy: a connection whose other end takes nothing more has no room.
func TestRoomy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it can't fail
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it can't fail
	w := newWire(conn)
	if w.roomy(1) {
		t.Error("nothing is known of the connection below")
	}
	if w.raw, err = conn.(*net.TCPConn).SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if !w.roomy(wireBuffer) {
		t.Error("there is room at first")
	}
	if w.roomy(wireBuffer + 1) {
		t.Error("for a large frame there never is, certainly")
	}
	for w.roomy(1) {
		if _, err := conn.Write(make([]byte, wireBuffer)); err != nil { // it does not wait
			t.Fatal(err)
		}
	}
}
