package raftnode

import (
	"context"
	"time"

	"github.com/legion-swarm/legion/api"
)

// forward gives an entry to the leader, until that has answered. The leader takes
// it once only.
func (n *Node) forward(ctx context.Context, leader Member, term uint64, r *request) {
	for first := true; ; first = false {
		err := n.cfg.Transport.Propose(ctx, leader, term, r.data)
		if err == nil || ctx.Err() != nil {
			return // the entry's own way through the log has the answer
		}
		// Once an answer got lost, a refusal is not the last word: the entry may be
		// in the log.
		if c := api.ClassOf(err); first && c != api.Unavailable && c != api.DeadlineExceeded {
			if c == api.NotLeader {
				err = again{err}
			}
			n.answer(r.seq, outcome{err: err})
			return
		}
		t := time.NewTimer(resendPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// Accept puts an entry of another member's Propose in the log, if this member
// leads in the term (NotLeader otherwise), and returns without waiting for more.
// An entry that is there already is not put there again.
func (n *Node) Accept(ctx context.Context, term uint64, entry []byte) error {
	told := make(chan error, 1)
	r, err := offered(term, entry, func(err error) { told <- err })
	if err != nil {
		return err
	}
	select {
	case n.requests <- r:
	case <-n.done:
		return n.stopped()
	case <-ctx.Done():
		return tooBusy(ctx.Err())
	}
	select {
	case err := <-told:
		return err
	case <-n.done:
		return n.stopped()
	case <-ctx.Done():
		return tooBusy(ctx.Err())
	}
}

// Offer is Accept for who can't wait: told gets its result, now or from Run's
// goroutine, which it must not hold up; or nothing, when the member is stopping.
func (n *Node) Offer(term uint64, entry []byte, told func(error)) {
	r, err := offered(term, entry, told)
	if err != nil {
		told(err)
		return
	}
	select {
	case n.requests <- r:
	default:
		told(api.Errorf(api.Unavailable, "this manager has too much to do; nothing was changed"))
	}
}

func offered(term uint64, entry []byte, told func(error)) (request, error) {
	if len(entry) < proposalHeader || len(entry) > maxEntry {
		return request{}, api.Errorf(api.Invalid, "a raft entry of %d bytes was proposed; from %d to %d are allowed", len(entry), proposalHeader, maxEntry)
	}
	return request{term: term, data: entry, told: told}, nil
}

// recent remembers the newest of many entries. The zero value is ready.
type recent struct {
	set  map[[proposalHeader]byte]struct{}
	ring [][proposalHeader]byte
	next int
}

// add returns false if the entry is remembered already.
func (r *recent) add(id [proposalHeader]byte) bool {
	if _, ok := r.set[id]; ok {
		return false
	}
	if r.set == nil {
		r.set = map[[proposalHeader]byte]struct{}{}
	}
	r.set[id] = struct{}{}
	if len(r.ring) < maxRecent {
		r.ring = append(r.ring, id)
		return true
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % maxRecent
	return true
}

func (r *recent) remove(id [proposalHeader]byte) { delete(r.set, id) }
