package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/swarmpb"
)

// peerLink is the connection to one other manager.
type peerLink struct {
	mesh *Mesh
	id   uint64
	addr string
	conn *grpc.ClientConn
	stop context.CancelFunc
	wake chan struct{} // capacity 1: there is something to send

	mu    sync.Mutex
	queue [][]byte
	size  int
	full  bool      // messages were dropped
	up    bool      // the stream stands
	wire  *wire     // what it is made of; nil until the first frame is sent
	busy  bool      // somebody writes: sends a frame
	fault error     // why wire could not be written to
	heard time.Time // when the last receipt came
	owed  time.Time // when the oldest frame without receipt was sent; zero: none
}

// push sends a message at once, if nothing else is being sent and there is room
// for it: to have another goroutine send it takes longer than that. Else it is
// queued, unless there are too many.
func (p *peerLink) push(message []byte) {
	p.mu.Lock()
	w := p.wire
	now := w != nil && !p.busy && len(p.queue) == 0
	if now {
		p.busy = true
	} else {
		p.queueUp(message)
	}
	p.mu.Unlock()
	if !now {
		p.poke()
		return
	}
	if w.roomy(len(message)) {
		_ = p.write(w, [][]byte{message}) // the connection ends then
		return
	}
	p.mu.Lock()
	p.busy = false
	p.queueUp(message)
	p.mu.Unlock()
	p.poke()
}

// queueUp is for callers that hold mu.
func (p *peerLink) queueUp(message []byte) {
	if len(p.queue) >= maxQueued || p.size+len(message) > maxQueuedSize || !p.up && len(p.queue) >= maxEarly {
		p.full = true // raft sends it again
		return
	}
	p.queue = append(p.queue, message)
	p.size += len(message)
}

// poke has the goroutine of send look what there is to do.
func (p *peerLink) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns the next messages, at most a frame full unless one alone is more.
// Whoever gets some writes them. There are none while somebody else writes.
func (p *peerLink) take() (messages [][]byte, dropped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy {
		return nil, false
	}
	size, n := 0, 0
	for n < len(p.queue) && (n == 0 || size+len(p.queue[n]) <= frameSize) {
		size += len(p.queue[n])
		n++
	}
	messages, p.queue = p.queue[:n:n], p.queue[n:]
	p.size -= size
	p.busy = n > 0
	dropped, p.full = p.full, false
	return messages, dropped
}

// write sends messages for whoever has made the link busy. An error ends the
// connection.
func (p *peerLink) write(w *wire, messages [][]byte) error {
	err := p.frame(w, messages)
	p.mu.Lock()
	p.busy = false
	more := len(p.queue) > 0
	if err != nil && p.wire == w {
		p.fault = err
	}
	p.mu.Unlock()
	switch {
	case err != nil:
		_ = w.Close() // that ends its receiver, and all with it
	case more:
		p.poke()
	}
	return err
}

func (p *peerLink) reachable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up && !p.heard.IsZero() && (p.owed.IsZero() || time.Since(p.owed) < silence)
}

// errSilent ends a connection on which nothing comes back. That says nothing of the
// other manager's process: it may be slow, or far away.
var errSilent = fmt.Errorf("no answer for %s", silence)

// run keeps a connection until ctx ends.
func (p *peerLink) run(ctx context.Context) {
	pause, lost := redialDelay, false
	for ctx.Err() == nil {
		stood := false
		w, err := p.dial(ctx, lost)
		if err == nil {
			stood, err = p.carry(ctx, w)
		}
		if ctx.Err() != nil {
			return
		}
		p.mesh.cfg.Unreachable(ctx, p.id)
		switch {
		case stood:
			p.mesh.cfg.Log.Warn("the connection to another manager broke", "raft", p.id, "address", p.addr, "err", err)
			pause, lost = redialDelay, !errors.Is(err, errSilent)
			p.mesh.tell()
		case lost:
			p.mesh.cfg.Suspect(ctx, p.id)
			lost = false
		default:
			t := time.NewTimer(pause)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
			pause = min(time.Duration(float64(pause)*redialFactor), redialLimit)
		}
	}
}

// dial connects. After a connection was lost the other manager has little time:
// if it takes no new one, its process has died.
func (p *peerLink) dial(ctx context.Context, lost bool) (*wire, error) {
	timeout := dialTimeout
	if lost {
		timeout = suspectAfter
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return dialRaft(ctx, p.addr, p.mesh.cfg.Credentials)
}

// carry sends what is queued until the connection breaks. stood reports whether
// the other manager has answered on it.
func (p *peerLink) carry(ctx context.Context, w *wire) (stood bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })() // that ends what reads and writes
	defer w.Close()                                          //nolint:errcheck // it may be closed already
	p.mu.Lock()
	p.up, p.heard, p.owed, p.fault = true, time.Time{}, time.Time{}, nil
	p.mu.Unlock()
	received := make(chan error, 1)
	go func() { received <- p.receive(ctx, w) }()
	failed, ended := p.send(ctx, w, received)
	cancel()
	if !ended {
		err = <-received
	} else {
		err = failed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	stood = !p.heard.IsZero()
	p.up, p.wire, p.queue, p.size = false, nil, nil, 0
	return stood, first(p.fault, failed, err)
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends until something fails; ended: the receiver did, with the error.
func (p *peerLink) send(ctx context.Context, w *wire, received <-chan error) (err error, ended bool) {
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	if err := w.send(&swarmpb.RaftFrame{From: p.mesh.cfg.ID, Addr: p.mesh.cfg.Addr}); err != nil {
		return err, false
	}
	p.mu.Lock()
	p.owed, p.wire = time.Now(), w
	p.mu.Unlock()
	for {
		messages, dropped := p.take()
		if dropped {
			p.mesh.cfg.Unreachable(ctx, p.id)
		}
		if len(messages) > 0 {
			if err := p.write(w, messages); err != nil {
				return err, false
			}
			continue
		}
		select {
		case <-p.wake:
		case <-ping.C:
			p.mu.Lock()
			owed, idle := p.owed, !p.busy && p.owed.IsZero()
			p.busy = p.busy || idle
			p.mu.Unlock()
			if !owed.IsZero() && time.Since(owed) > silence {
				return errSilent, false
			}
			if idle {
				if err := p.write(w, nil); err != nil {
					return err, false
				}
			}
		case err := <-received:
			return err, true
		case <-ctx.Done():
			return ctx.Err(), false
		}
	}
}

// frame sends messages: one that is larger than a frame in parts.
func (p *peerLink) frame(w *wire, messages [][]byte) error {
	p.mu.Lock()
	if p.owed.IsZero() {
		p.owed = time.Now()
	}
	p.mu.Unlock()
	if len(messages) != 1 || len(messages[0]) <= frameSize {
		return w.send(&swarmpb.RaftFrame{From: p.mesh.cfg.ID, Messages: messages})
	}
	for rest := messages[0]; len(rest) > 0; {
		part := rest[:min(len(rest), frameSize)]
		rest = rest[len(part):]
		if err := w.send(&swarmpb.RaftFrame{From: p.mesh.cfg.ID, Part: part, Last: len(rest) == 0}); err != nil {
			return err
		}
	}
	return nil
}

// receive takes receipts until the connection breaks.
func (p *peerLink) receive(ctx context.Context, w *wire) error {
	var r swarmpb.RaftReceipt
	for {
		if err := w.receive(&r, maxReceipt); err != nil {
			return err
		}
		p.mu.Lock()
		first := p.heard.IsZero()
		p.heard, p.owed = time.Now(), time.Time{}
		p.mu.Unlock()
		if first {
			p.conn.Connect() // for calls; it may be waiting to try again
			p.conn.ResetConnectBackoff()
			p.mesh.tell()
		}
		if r.GetStranger() {
			p.mesh.cfg.Stranger(ctx, p.conn)
		}
	}
}
