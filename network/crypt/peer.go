package crypt

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"
)

// peer is another node. What is not atomic is guarded by Node.mu.
type peer struct {
	addr    netip.Addr
	session atomic.Pointer[session]

	own       [startSize]byte // this node's number, for that one
	other     [startSize]byte // that node's
	known     bool            // other is known
	fresh     bool            // other is new since the session was made
	challenge uint64          // that is not answered yet

	due     time.Time // of the next hello that asks
	pause   time.Duration
	replies int          // since
	since   time.Time    // when the second of replies began
	asked   atomic.Int64 // when it was asked last because of a packet
	ask     atomic.Bool  // it is to be asked
}

const (
	// A node that doesn't answer is asked again after firstPause, then more seldom.
	firstPause = 50 * time.Millisecond
	maxPause   = 2 * time.Second
	// maxReplies bounds what hellos make a node send to another in a second.
	maxReplies = 100
	// askGap is how often a node is asked that sends what can't be opened.
	askGap = 100 * time.Millisecond
)

// take handles what a peer says; reply is to be sent back if it is not nil.
// changed: the peer has begun anew.
func (p *peer) take(m hello) (reply *hello, changed bool) {
	if m.echo != 0 && m.echo == p.challenge {
		p.challenge = challenge() // answered once
		if !p.known || p.other != m.start {
			p.other, p.known, p.fresh, changed = m.start, true, true, true
		}
	}
	if m.challenge == 0 {
		return nil, changed
	}
	reply = &hello{start: p.own, echo: m.challenge}
	if !p.known || p.other != m.start {
		reply.challenge = p.challenge
	}
	return reply, changed
}

// mayReply reports whether a reply is within the bound.
func (p *peer) mayReply(now time.Time) bool {
	if now.Sub(p.since) >= time.Second {
		p.since, p.replies = now, 0
	}
	p.replies++
	return p.replies <= maxReplies
}

// Packet is to be sent to a node.
type Packet struct {
	To   netip.Addr
	Data []byte
}

// Tick returns hellos that are due, and when to call it again; the zero time: when
// Set has changed something.
func (n *Node) Tick() (out []Packet, next time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.now()
	for _, p := range n.peers {
		if p.ask.Swap(false) || !p.known && !p.due.After(now) {
			out = n.sealHello(out, p, hello{start: p.own, challenge: p.challenge})
			p.pause = min(max(2*p.pause, firstPause), maxPause)
			p.due = now.Add(p.pause)
		}
		if !p.known && (next.IsZero() || p.due.Before(next)) {
			next = p.due
		}
	}
	return out, next
}

// helloData is what is authenticated with a hello: its header and both addresses.
func helloData(packet []byte, from, to netip.Addr) []byte {
	a, b := from.As16(), to.As16()
	data := append(make([]byte, 0, headerSize+2*len(a)), packet[:headerSize]...)
	return append(append(data, a[:]...), b[:]...)
}

// sealHello adds a hello to what is to be sent; without a key there is none.
// Callers hold mu.
func (n *Node) sealHello(out []Packet, p *peer, m hello) []Packet {
	for _, k := range n.hellos {
		if k.id != n.config.Send {
			continue
		}
		b := make([]byte, headerSize, helloSize)
		b[0] = kindHello
		binary.BigEndian.PutUint32(b[4:], k.id)
		fill(b[8:headerSize])
		var text [startSize + 2*challengeSize]byte
		b = k.aead.Seal(b, b[8:headerSize], m.append(text[:0]), helloData(b, n.config.Local, p.addr))
		return append(out, Packet{p.addr, b})
	}
	return out
}

// openHello reads a hello; false if it is not one of that node's.
func (n *Node) openHello(from netip.Addr, b []byte) (hello, reason) {
	if len(b) != helloSize {
		return hello{}, malformed
	}
	id := binary.BigEndian.Uint32(b[4:])
	for _, k := range n.hellos {
		if k.id != id {
			continue
		}
		text, err := k.aead.Open(nil, b[8:headerSize], b[headerSize:], helloData(b, from, n.config.Local))
		if err != nil {
			return hello{}, forged
		}
		return readHello(text), 0
	}
	return hello{}, noKey
}

// takeHello handles a packet that claims to be a hello of a peer's.
func (n *Node) takeHello(p *peer, packet []byte, out []Packet) []Packet {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peers[p.addr] != p { // forgotten meanwhile
		return out
	}
	m, why := n.openHello(p.addr, packet)
	if why != 0 {
		n.counts.drop(why)
		return out
	}
	reply, changed := p.take(m)
	if changed {
		p.pause = 0
		if n.establish(p) != nil { // impossible with keys that Set has accepted
			p.known = false
			return out
		}
	}
	if reply != nil && p.mayReply(n.now()) {
		out = n.sealHello(out, p, *reply)
	}
	return out
}

// unknown notes that a peer sends what can't be opened: one of both has begun anew.
// It reports whether Tick is to be called, to ask.
func (p *peer) unknown(now time.Time) bool {
	last := p.asked.Load()
	if now.UnixNano()-last < int64(askGap) || !p.asked.CompareAndSwap(last, now.UnixNano()) {
		return false
	}
	p.ask.Store(true)
	return true
}
