package dns

import (
	"math/rand/v2"
	"net/netip"

	"github.com/legion-swarm/legion/network"
)

// verdict says what is to become of a query.
type verdict int

const (
	ignore  verdict = iota // no answer at all
	answer                 // the message that came with it
	forward                // others are to be asked
)

// decide answers a message as far as names alone can. The answer is written to
// out, and takes at most limit bytes, or what the query allows if that is less
// and it came as a datagram. start says with which of several addresses to
// begin.
func decide(out, m []byte, q *query, n *Names, r *network.Resolver, datagram bool, start uint32) ([]byte, verdict) {
	code, ok := q.parse(m)
	switch {
	case !ok:
		return out[:0], ignore
	case code != Success:
		return refuse(out, q, code), answer
	case q.class != classIN || q.kind >= typeIXFR && q.kind <= typeANY:
		return refuse(out, q, Refused), answer
	}
	var res Result
	if q.plain {
		res = n.Lookup(r.Zones, q.name(), q.kind)
	}
	switch {
	case !res.Known && len(r.Servers) > 0:
		return out[:0], forward
	case !res.Exists:
		return refuse(out, q, NameError), answer
	}
	limit := maxMessage
	if datagram {
		limit = min(q.udpSize, maxUDP)
	}
	w := begin(out, q, Success, limit)
	switch q.kind {
	case TypeA, TypeAAAA:
		w.addresses(res.Addresses, start, datagram)
	case TypePTR:
		var buf [maxName + maxLabel]byte
		if name, ok := appendName(buf[:0], res.Owner); ok && res.Owner != "" {
			w.add(TypePTR, name)
		}
	}
	return w.end(Success), answer
}

// addresses adds those of the family in question, as many as there is room
// for, beginning with any of that family.
func (r *reply) addresses(l []netip.Addr, start uint32, datagram bool) {
	n := uint32(0)
	for _, a := range l {
		if r.asks(a) {
			n++
		}
	}
	if n == 0 {
		return
	}
	first := start % n
	for _, late := range []bool{true, false} { // those from the first on, then those before it
		k := uint32(0)
		for _, a := range l {
			if !r.asks(a) {
				continue
			}
			if k++; (k > first) != late {
				continue
			}
			if !r.address(a.Unmap()) {
				if datagram {
					r.truncated()
				}
				return
			}
		}
	}
}

// asks reports whether an address is of the family in question.
func (r *reply) asks(a netip.Addr) bool { return a.Unmap().Is4() == (r.q.kind == TypeA) }

func (r *reply) address(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		return r.add(TypeA, b[:])
	}
	b := a.As16()
	return r.add(TypeAAAA, b[:])
}

// anyStart is a start for decide.
func anyStart() uint32 { return rand.Uint32() }
