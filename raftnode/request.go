package raftnode

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/legion-swarm/legion/api"
)

// request is something for Run to do: one of data, change, read and do is set.
type request struct {
	seq    uint64
	term   uint64 // the only one in which data may be put in the log; 0: any
	data   []byte
	told   func(error) // of data that another member proposed: takes the place of seq and reply
	change *raftpb.ConfChange
	read   bool
	do     func(ctx context.Context) error // its error ends Run
	reply  chan outcome                    // capacity 1
}

// Entries carry who proposed them, so that their outcome finds its way back:
// the member's id and a number that it uses once.
// An entry without more is a Barrier's.
const proposalHeader = 16

// Propose puts data in the log and returns when it was applied here, with the
// entry's index and Apply's result. On a follower it goes to the leader; it is
// put in the log once, however often the leader changes meanwhile. Unavailable:
// nobody leads; the text says whether it may still come to pass, as with
// DeadlineExceeded.
func (n *Node) Propose(ctx context.Context, data []byte) (uint64, error) {
	if len(data) > maxProposal {
		return 0, api.Errorf(api.ResourceExhausted, "a change of %d bytes is too large for the raft log: at most %d", len(data), maxProposal)
	}
	entry := make([]byte, proposalHeader, proposalHeader+len(data))
	binary.BigEndian.PutUint64(entry, n.cfg.ID)
	entry = append(entry, data...)
	term, _ := ctx.Value(termKey{}).(uint64)
	for p := newPatience(n); ; {
		seq := n.seq.Add(1)
		binary.BigEndian.PutUint64(entry[8:], seq)
		index, err := n.propose(ctx, &request{seq: seq, data: entry, term: term}, p)
		if !errors.Is(err, errAgain) {
			return index, err
		}
		if err := p.pause(ctx, err); err != nil {
			return 0, err
		}
		entry = slices.Clone(entry) // raft may still have the old one
	}
}

// InTerm returns a context in which Propose puts data in the log only while this
// member leads in the term, and never through another leader: NotLeader then. So
// what a leader's loops write can't come after what those of its successor wrote.
func InTerm(ctx context.Context, term uint64) context.Context {
	return context.WithValue(ctx, termKey{}, term)
}

type termKey struct{}

// Barrier returns once all that was proposed here before, in the same term, is
// applied here, or never will be: also what its proposer has given up. ctx says in
// which term, as with InTerm. Errors are Propose's.
func (n *Node) Barrier(ctx context.Context) error {
	_, err := n.Propose(ctx, nil)
	return err
}

// errAgain is in the chain of an error after which the request is certainly not
// in the log and never will be, and may do better if it is tried again.
var errAgain = errors.New("try again")

// again marks an error as one after which to try again.
type again struct{ error }

func (again) Is(target error) bool { return target == errAgain }

func (a again) Unwrap() error { return a.error }

// propose tries once: with whoever leads.
func (n *Node) propose(ctx context.Context, r *request, p *patience) (uint64, error) {
	st := n.Status()
	if st.Leader == 0 || st.Leader == n.cfg.ID || n.cfg.Transport == nil || r.term != 0 {
		return n.call(ctx, *r)
	}
	leader := Member{ID: st.Leader}
	for _, m := range st.Members {
		if m.ID == st.Leader {
			leader = m
		}
	}
	r.reply = make(chan outcome, 1)
	n.mu.Lock()
	n.waiting[r.seq] = waiter{r.reply, st.Term}
	n.mu.Unlock()
	sent, cancel := context.WithCancel(ctx)
	defer cancel()
	go n.forward(sent, leader, st.Term, r)
	return n.outcome(ctx, r, p)
}

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

// leadsIn is for Run's goroutine.
func (n *Node) leadsIn(term uint64) bool {
	s := n.raw.BasicStatus()
	return s.RaftState == raft.StateLeader && s.Term == term
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

// call sends a request to Run and waits for its outcome.
func (n *Node) call(ctx context.Context, r request) (uint64, error) {
	r.reply = make(chan outcome, 1)
	select {
	case n.requests <- r:
	case <-n.done:
		return 0, n.stopped()
	case <-ctx.Done():
		return 0, tooBusy(ctx.Err())
	}
	return n.outcome(ctx, &r, newPatience(n))
}

func tooBusy(err error) error {
	return api.Errorf(api.DeadlineExceeded, "the raft log did not take the request in time: %w", err)
}

// outcome waits for that of a request.
func (n *Node) outcome(ctx context.Context, r *request, p *patience) (uint64, error) {
	defer p.stop()
	for {
		changed := n.Changed()
		var tooLong <-chan time.Time
		if r.seq != 0 { // what reads wait for is up to the caller
			tooLong = p.watch()
		}
		select {
		case o := <-r.reply:
			return o.index, o.err
		case <-n.done:
			select {
			case o := <-r.reply:
				return o.index, o.err
			default:
				return 0, n.stopped()
			}
		case <-ctx.Done():
			n.abandon(r.seq)
			return 0, api.Errorf(api.DeadlineExceeded, "no quorum of managers has acknowledged the request in time; a change may still come to pass: %w", ctx.Err())
		case <-tooLong:
			n.abandon(r.seq)
			return 0, api.Errorf(api.Unavailable, "%s (%w)", noLeader, ErrMayHappen)
		case <-changed:
		}
	}
}

// ErrMayHappen is in the chain when nobody leads any more since the change was
// put in the log.
var ErrMayHappen = errors.New("the change may still come to pass")

// noLeader is Docker's sentence.
const noLeader = "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."

func (n *Node) abandon(seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.waiting, seq)
}

// do runs f in Run's goroutine; its error is for the caller.
func (n *Node) do(ctx context.Context, f func() error) error {
	reply := make(chan error, 1)
	r := request{}
	r.do = func(context.Context) error { reply <- f(); return nil }
	if _, err := n.call(ctx, r); err != nil {
		return err
	}
	return <-reply
}

// request takes a request in Run's goroutine. Proposals are gathered until
// putAll.
func (n *Node) request(ctx context.Context, r request) error {
	if r.data != nil {
		n.proposals = append(n.proposals, r)
		if n.gathered += len(r.data); n.gathered > maxAppendSize {
			n.putAll()
		}
		return nil
	}
	n.putAll()
	switch {
	case r.do != nil:
		err := r.do(ctx)
		r.reply <- outcome{}
		return err
	case r.read:
		n.reads.add(n, r.reply)
		return nil
	}
	err := n.mayChange(r.change)
	if err == nil {
		err = n.raw.ProposeConfChange(*r.change)
	}
	if err != nil {
		r.end(n.refusal(err))
		return nil
	}
	n.changes = append(n.changes, r.seq)
	n.underWay([]request{r})
	return nil
}

// putAll puts what was gathered in the log.
func (n *Node) putAll() {
	if len(n.proposals) == 0 {
		return
	}
	all := slices.DeleteFunc(n.proposals, n.outdated)
	n.proposals, n.gathered = nil, 0
	entries := make([]raftpb.Entry, len(all))
	for i := range all {
		entries[i].Data = all[i].data
	}
	if n.put(entries) == nil {
		n.underWay(all)
		return
	}
	for i := range all { // there may be room for some
		if err := n.put(entries[i : i+1]); err != nil {
			n.refuse(&all[i], n.refusal(err))
			continue
		}
		n.underWay(all[i : i+1])
	}
}

// outdated reports whether a proposal must not be put in the log, having answered
// it: its term is over, or it is there already.
func (n *Node) outdated(r request) bool {
	switch {
	case r.term != 0 && !n.leadsIn(r.term):
		r.end(api.Errorf(api.NotLeader, "this manager does not lead in term %d (it is in %d); nothing was changed", r.term, n.raw.BasicStatus().Term))
		return true
	case r.told != nil && !n.recent.add([proposalHeader]byte(r.data)):
		r.end(nil)
		return true
	}
	return false
}

// refuse answers a proposal that was not put in the log.
func (n *Node) refuse(r *request, err error) {
	if r.told != nil {
		n.recent.remove([proposalHeader]byte(r.data))
		if api.Is(err, api.Unavailable) {
			err = api.Errorf(api.NotLeader, "%w", err) // nothing was changed: it is no fault of the way
		}
	}
	r.end(err)
}

// end answers a request that is at its end before it is under way.
func (r *request) end(err error) {
	if r.told != nil {
		r.told(err)
		return
	}
	r.reply <- outcome{err: err}
}

// put puts entries in the log, all or none. Raft tells each member in one message,
// which is answered once.
func (n *Node) put(entries []raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	return n.raw.Step(raftpb.Message{Type: raftpb.MsgProp, From: n.cfg.ID, Entries: entries})
}

// underWay notes who waits for what was put in the log just now, and tells who
// waits for no more than that.
func (n *Node) underWay(all []request) {
	term := n.raw.BasicStatus().Term
	n.mu.Lock()
	for i := range all {
		if all[i].told == nil {
			n.waiting[all[i].seq] = waiter{all[i].reply, term}
		}
	}
	n.mu.Unlock()
	for i := range all {
		if all[i].told != nil {
			all[i].told(nil)
		}
	}
}

func (n *Node) refusal(err error) error {
	if !errors.Is(err, raft.ErrProposalDropped) {
		return err
	}
	s := n.raw.BasicStatus()
	switch {
	case s.RaftState != raft.StateLeader && s.Lead == 0:
		return again{api.Errorf(api.Unavailable, "%s Nothing was changed", noLeader)}
	case s.RaftState != raft.StateLeader:
		return again{api.Errorf(api.NotLeader, "%w", &NotLeaderError{Leader: Member{ID: s.Lead, Address: n.addresses[s.Lead]}})}
	case s.LeadTransferee != 0:
		return again{api.Errorf(api.Unavailable, "leadership is being transferred; nothing was changed: try again")}
	}
	return api.Errorf(api.Unavailable, "too many changes wait for a quorum of managers; nothing was changed: try again later")
}

// NotLeaderError is in the chain of a NotLeader error.
type NotLeaderError struct{ Leader Member }

func (e *NotLeaderError) Error() string {
	return fmt.Sprintf("this manager is not the leader: raft member %x at %s is", e.Leader.ID, e.Leader.Address)
}

// answer gives a proposal its outcome, if it is still waited for.
func (n *Node) answer(seq uint64, o outcome) {
	n.mu.Lock()
	w, ok := n.waiting[seq]
	delete(n.waiting, seq)
	n.mu.Unlock()
	if ok {
		w.reply <- o
	}
}

// waiter is a proposal under way.
type waiter struct {
	reply chan outcome
	term  uint64 // in which it can have been appended, and in no other
}

// superseded answers what was proposed in earlier terms and is not in the log:
// an entry of the term is applied, so nothing older can follow. Callers hold mu.
func (n *Node) superseded(term uint64) {
	for seq, w := range n.waiting {
		if w.term < term {
			w.reply <- outcome{err: again{api.Errorf(api.Unavailable, "another manager leads now; nothing was changed: try again")}}
			delete(n.waiting, seq)
		}
	}
}

func (n *Node) failAll(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for seq, w := range n.waiting {
		w.reply <- outcome{err: err}
		delete(n.waiting, seq)
	}
}
