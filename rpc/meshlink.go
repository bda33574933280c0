package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
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
	queue []parcel
	size  int
	full  bool  // messages were dropped
	up    bool  // the stream stands
	wire  *wire // what it is made of
	busy  bool  // somebody writes: sends a frame on wire
	fault error // why wire could not be written to
	// offers wait for a refusal, by number, the last of which was given out.
	offers map[uint64]chan<- error
	last   uint64
	heard  time.Time // when the last receipt came
	owed   time.Time // when the oldest frame without receipt was sent; zero: none
}

// parcel is something to send: one or the other.
type parcel struct {
	message []byte
	offer   *swarmpb.RaftOffer
}

func (p parcel) size() int { return len(p.message) + len(p.offer.GetEntry()) }

// push sends a parcel at once, if nothing else is being sent and there is room
// for it: to have another goroutine send it takes longer than that. Else it is
// queued, unless there are too many.
func (p *peerLink) push(item parcel) {
	p.mu.Lock()
	w := p.wire
	now := w != nil && !p.busy && len(p.queue) == 0
	if now {
		p.busy = true
	} else {
		p.queueUp(item)
	}
	p.mu.Unlock()
	if !now {
		p.poke()
		return
	}
	if w.roomy(item.size()) {
		_ = p.write(w, []parcel{item}) // the connection ends then
		return
	}
	p.mu.Lock()
	p.idle(w)
	p.queueUp(item)
	p.mu.Unlock()
	p.poke()
}

// idle ends what made the link busy, unless it has another wire by now. Callers
// hold mu.
func (p *peerLink) idle(w *wire) {
	if p.wire == w {
		p.busy = false
	}
}

// queueUp is for callers that hold mu.
func (p *peerLink) queueUp(item parcel) {
	if len(p.queue) >= maxQueued || p.size+item.size() > maxQueuedSize || !p.up && len(p.queue) >= maxEarly {
		p.full = true // raft sends its messages again
		if item.offer != nil {
			p.refuse(item.offer.GetNumber(), api.Errorf(api.Unavailable, "too much waits to be sent to the manager"))
		}
		return
	}
	p.queue = append(p.queue, item)
	p.size += item.size()
}

// poke has the goroutine of send look what there is to do.
func (p *peerLink) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take returns what is next, at most a frame full unless one alone is more.
// Whoever gets something writes it. There is nothing while somebody else writes.
func (p *peerLink) take() (items []parcel, dropped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy {
		return nil, false
	}
	size, n := 0, 0
	for n < len(p.queue) && (n == 0 || size+p.queue[n].size() <= frameSize) {
		size += p.queue[n].size()
		n++
	}
	items, p.queue = p.queue[:n:n], p.queue[n:]
	p.size -= size
	p.busy = n > 0
	dropped, p.full = p.full, false
	return items, dropped
}

// write sends items for whoever has made the link busy. An error ends the
// connection.
func (p *peerLink) write(w *wire, items []parcel) error {
	err := p.frame(w, items)
	p.mu.Lock()
	p.idle(w)
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
	for _, c := range p.offers {
		c <- api.Errorf(api.Unavailable, "the connection to the manager broke before it answered")
	}
	clear(p.offers)
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
	if err := p.greet(w); err != nil {
		return err, false
	}
	for {
		items, dropped := p.take()
		if dropped {
			p.mesh.cfg.Unreachable(ctx, p.id)
		}
		if len(items) > 0 {
			if err := p.write(w, items); err != nil {
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

// greet makes w the link's wire and sends the first frame on it. What is pushed
// meanwhile waits. The receipt may come before greet returns.
func (p *peerLink) greet(w *wire) error {
	p.mu.Lock()
	p.owed, p.wire, p.busy = time.Now(), w, true
	p.mu.Unlock()
	err := w.send(&swarmpb.RaftFrame{From: p.mesh.cfg.ID, Addr: p.mesh.cfg.Addr})
	p.mu.Lock()
	p.idle(w)
	p.mu.Unlock()
	return err
}

// frame sends items: a message that is larger than a frame in parts.
func (p *peerLink) frame(w *wire, items []parcel) error {
	p.mu.Lock()
	if p.owed.IsZero() {
		p.owed = time.Now()
	}
	p.mu.Unlock()
	if len(items) != 1 || len(items[0].message) <= frameSize {
		f := &swarmpb.RaftFrame{From: p.mesh.cfg.ID}
		for _, item := range items {
			if item.offer != nil {
				f.Offers = append(f.Offers, item.offer)
			} else {
				f.Messages = append(f.Messages, item.message)
			}
		}
		return w.send(f)
	}
	for rest := items[0].message; len(rest) > 0; {
		part := rest[:min(len(rest), frameSize)]
		rest = rest[len(part):]
		if err := w.send(&swarmpb.RaftFrame{From: p.mesh.cfg.ID, Part: part, Last: len(rest) == 0}); err != nil {
			return err
		}
	}
	return nil
}

// offer has the other manager put an entry in the log. It returns when that is
// refused, or ctx ends: what has become of it the log tells. sent is false if there
// is no connection to send it on.
func (p *peerLink) offer(ctx context.Context, term uint64, entry []byte) (sent bool, err error) {
	refused := make(chan error, 1)
	p.mu.Lock()
	if p.wire == nil {
		p.mu.Unlock()
		return false, nil
	}
	p.last++
	number := p.last
	p.offers[number] = refused
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.offers, number)
	}()
	p.push(parcel{offer: &swarmpb.RaftOffer{Number: number, Term: term, Entry: entry}})
	select {
	case err := <-refused:
		return true, err
	case <-ctx.Done():
		return true, api.Errorf(api.DeadlineExceeded, "a proposal for the raft log came to nothing yet: %w", ctx.Err())
	}
}

// refused tells who waits for an offer that it is refused.
func (p *peerLink) refused(number uint64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse(number, err)
}

// refuse is refused for callers that hold mu.
func (p *peerLink) refuse(number uint64, err error) {
	if c := p.offers[number]; c != nil {
		c <- err
		delete(p.offers, number)
	}
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
		for _, no := range r.GetRefusals() {
			p.refused(no.GetNumber(), refusalOf(no))
		}
		if r.GetStranger() {
			p.mesh.cfg.Stranger(ctx, p.conn)
		}
	}
}
