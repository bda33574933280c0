package keeper

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// pipe is a pipe that doesn't block.
type pipe struct {
	t    testing.TB
	r, w int
}

func newPipe(t testing.TB) *pipe {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Close(p[0])
		_ = unix.Close(p[1])
	})
	return &pipe{t: t, r: p[0], w: p[1]}
}

func (p *pipe) put(b byte) {
	if _, err := unix.Write(p.w, []byte{b}); err != nil {
		p.t.Error(err)
	}
}

// take returns the next byte; false if there is none.
func (p *pipe) take() (byte, bool) {
	var b [1]byte
	n, err := unix.Read(p.r, b[:])
	return b[0], n == 1 && err == nil
}

// What comes ends waiting: before it waits, while it waits, and each time.
func TestArrival(t *testing.T) {
	p := newPipe(t)
	a, err := newArrival(p.r)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 1000
	p.put(0)
	more, done := make(chan byte), make(chan struct{})
	go func() {
		for b := range more {
			p.put(b)
		}
		close(done)
	}()
	for i := range rounds {
		a.wait()
		if b, ok := p.take(); !ok || b != byte(i) {
			t.Errorf("%d, %v, not %d", b, ok, byte(i))
			break
		}
		if i+1 < rounds {
			more <- byte(i + 1)
		}
	}
	close(more)
	<-done
	if err := a.close(); err != nil {
		t.Error(err)
	}
}

// A carrier handles what comes, of each descriptor; does what it is told in between;
// and touches nothing that it was told to forget.
func TestCarrier(t *testing.T) {
	c, err := newCarrier(newBulk(func(uint32) {}))
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 1000
	var pipes [3]*pipe
	var got [3][]byte // by the carrier's goroutine
	seen := make(chan int, 3*rounds)
	for i := range pipes {
		pipes[i] = newPipe(t)
		if err := c.watch(pipes[i].r, func() (n int) {
			for b, ok := pipes[i].take(); ok; b, ok = pipes[i].take() {
				got[i] = append(got[i], b)
				seen <- i
				n++
			}
			return n
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.watch(-1, nil); err == nil {
		t.Error("it watches what is not open")
	}
	var want []byte
	for b := range rounds {
		want = append(want, byte(b))
		for i := range pipes {
			pipes[i].put(byte(b))
		}
		for range pipes {
			<-seen
		}
	}
	for i := range pipes {
		var is []byte
		c.do(func() { is = slices.Clone(got[i]) })
		if !slices.Equal(is, want) {
			t.Errorf("%d: %d bytes", i, len(is))
		}
	}
	c.forget(pipes[0].r)
	c.forget(pipes[0].r)
	pipes[0].put(0)
	pipes[1].put(0)
	if i := <-seen; i != 1 {
		t.Errorf("%d is not forgotten", i)
	}
	c.close()
	if _, ok := pipes[0].take(); !ok {
		t.Error("what is forgotten was read")
	}
}
