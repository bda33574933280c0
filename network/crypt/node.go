package crypt

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// MAC is an endpoint's address in an overlay.
type MAC [macSize]byte

// Config is what a Node is to do. The node keeps it.
type Config struct {
	// Local is the node's own address, for others.
	Local netip.Addr
	// Keys of the swarm; Send is the id of the one to send with. Without any,
	// nothing is sent or accepted.
	Keys []Key
	Send uint32
	// Networks by VXLAN id: the nodes of their endpoints.
	Networks map[uint32]map[MAC]netip.Addr
}

// Node protects what goes between this node and others. All methods are safe for
// concurrent use; Sealers and Openers are used by one goroutine each.
type Node struct {
	now    func() time.Time
	view   atomic.Pointer[view]
	counts counts

	mu      sync.Mutex
	config  Config
	hellos  []helloKey
	peers   map[netip.Addr]*peer
	dropped map[uint32]struct{} // ids of keys that were there once
}

// view is what packets are handled by. Immutable but for the peers' sessions.
type view struct {
	send     uint32
	networks map[uint32]*overlay
	peers    map[netip.Addr]*peer
}

type overlay struct {
	byMAC map[MAC]*peer
	peers map[*peer]struct{}
}

// helloKey protects hellos. All nodes use the same.
type helloKey struct {
	id   uint32
	aead cipher.AEAD
}

// NewNode returns one that lets nothing pass until Set. now tells the time.
func NewNode(now func() time.Time) *Node {
	n := &Node{now: now, peers: map[netip.Addr]*peer{}, dropped: map[uint32]struct{}{}}
	n.view.Store(&view{})
	return n
}

// Set changes what the node does. What is under way between it and nodes that it
// knew before goes on.
func (n *Node) Set(c Config) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.Local != n.config.Local || n.comesBack(c.Keys) {
		clear(n.peers) // all begins anew, with numbers that nobody has seen
	}
	hellos := make([]helloKey, 0, len(c.Keys))
	for i := range c.Keys {
		aead, err := derive(&c.Keys[i], labelHello)
		if err != nil {
			return err
		}
		hellos = append(hellos, helloKey{c.Keys[i].ID, aead})
	}
	same := slices.Equal(c.Keys, n.config.Keys)
	n.config, n.hellos = c, hellos
	v := &view{send: c.Send, networks: make(map[uint32]*overlay, len(c.Networks)), peers: map[netip.Addr]*peer{}}
	for vni, nodes := range c.Networks {
		o := &overlay{byMAC: make(map[MAC]*peer, len(nodes)), peers: map[*peer]struct{}{}}
		for mac, addr := range nodes {
			p := v.peers[addr]
			if p == nil {
				p = n.peer(addr)
				v.peers[addr] = p
			}
			o.byMAC[mac] = p
			o.peers[p] = struct{}{}
		}
		v.networks[vni] = o
	}
	n.peers = maps.Clone(v.peers)
	for _, p := range n.peers {
		if same {
			break
		}
		if !p.known {
			p.due, p.pause = n.now(), 0
		} else {
			if err := n.establish(p); err != nil {
				return err
			}
		}
	}
	n.view.Store(v)
	return nil
}

// comesBack reports whether a key has an id that was used and dropped before, or
// stood for another secret: its counters are not known any more.
func (n *Node) comesBack(keys []Key) bool {
	is := make(map[uint32]*Key, len(keys))
	back := false
	for i := range keys {
		is[keys[i].ID] = &keys[i]
		_, was := n.dropped[keys[i].ID]
		back = back || was
	}
	for i := range n.config.Keys {
		k := &n.config.Keys[i]
		if other := is[k.ID]; other == nil {
			n.dropped[k.ID] = struct{}{}
		} else if *other != *k {
			back = true
		}
	}
	if back || len(n.dropped) > maxDropped {
		clear(n.dropped)
		return true
	}
	return false
}

// maxDropped is of how many keys it is remembered that they were there: years.
const maxDropped = 4096

// peer returns what is known of a node. Callers hold mu.
func (n *Node) peer(addr netip.Addr) *peer {
	if p := n.peers[addr]; p != nil {
		return p
	}
	p := &peer{addr: addr, due: n.now()}
	fill(p.own[:])
	p.challenge = challenge()
	return p
}

// fill never fails: crypto/rand ends the process rather.
func fill(b []byte) { _, _ = rand.Read(b) }

func challenge() uint64 {
	var b [challengeSize]byte
	for binary.BigEndian.Uint64(b[:]) == 0 {
		fill(b[:])
	}
	return binary.BigEndian.Uint64(b[:])
}

// establish derives the session with a peer that is known. Callers hold mu.
func (n *Node) establish(p *peer) error {
	old := p.session.Load()
	if p.fresh {
		old, p.fresh = nil, false
	}
	s, err := newSession(end{n.config.Local, p.own}, end{p.addr, p.other}, n.config.Keys, old)
	if err != nil {
		return fmt.Errorf("session with %s: %w", p.addr, err)
	}
	p.session.Store(s)
	return nil
}

// Established reports whether all nodes that it has to do with are known, so that
// packets pass.
func (n *Node) Established() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.peers {
		if s := p.session.Load(); s.key(n.config.Send) == nil {
			return false
		}
	}
	return true
}
