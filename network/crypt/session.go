package crypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Key of the swarm. See network.Key.
type Key struct {
	ID     uint32
	Secret [KeySize]byte
}

// Labels of what is derived from a key: for what, and with which cipher.
const (
	labelHello = "legion overlay hello AES-128-GCM"
	labelData  = "legion overlay data AES-128-GCM"
	// derivedSize is AES-128's. It is what Docker's encrypted overlays have, and takes
	// a tenth less time.
	derivedSize = 16
)

// derive makes a cipher from a key; another one for each id.
func derive(k *Key, info string) (cipher.AEAD, error) {
	info += string(binary.BigEndian.AppendUint32(nil, k.ID))
	secret, err := hkdf.Key(sha256.New, k.Secret[:], nil, info, derivedSize)
	if err != nil {
		return nil, fmt.Errorf("derive a key: %w", err)
	}
	b, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// end is one of the two nodes of a session.
type end struct {
	addr  netip.Addr
	start [startSize]byte
}

// session is what protects packets between two nodes until one of them starts
// anew. Immutable but for its keys' counters and windows.
type session struct {
	sendTag, receiveTag uint32
	keys                []*sessionKey // one for each of the swarm's
}

// sessionKey is a key of the swarm as it is used with one other node.
type sessionKey struct {
	id      uint32
	send    cipher.AEAD
	receive cipher.AEAD
	counter atomic.Uint64 // last one sent

	mu   sync.Mutex // of seen; what it is held for needs a processor alone
	seen window
}

// newSession derives what protects packets between two nodes. Of the keys that old
// has, of a session between the same ends, it goes on with the counters.
func newSession(own, other end, keys []Key, old *session) (*session, error) {
	out, in := pairing(own, other), pairing(other, own)
	s := &session{sendTag: sessionTag(out), receiveTag: sessionTag(in)}
	for i := range keys {
		if k := old.key(keys[i].ID); k != nil {
			s.keys = append(s.keys, k)
			continue
		}
		k := &sessionKey{id: keys[i].ID}
		var err error
		if k.send, err = derive(&keys[i], out); err != nil {
			return nil, err
		}
		if k.receive, err = derive(&keys[i], in); err != nil {
			return nil, err
		}
		s.keys = append(s.keys, k)
	}
	return s, nil
}

// pairing names what goes from one end to another.
func pairing(from, to end) string {
	a, b := from.addr.As16(), to.addr.As16()
	info := append([]byte(labelData), a[:]...)
	info = append(append(info, from.start[:]...), b[:]...)
	return string(append(info, to.start[:]...))
}

func sessionTag(pairing string) uint32 {
	sum := sha256.Sum256([]byte(pairing))
	return binary.BigEndian.Uint32(sum[:])
}

func (s *session) key(id uint32) *sessionKey {
	if s != nil {
		for _, k := range s.keys {
			if k.id == id {
				return k
			}
		}
	}
	return nil
}

const nonceSize = 12 // GCM's

// putNonce makes a data packet's nonce: the overlay's id and the counter, which never
// comes twice under a key. What else is in a packet's header chooses the key. So all of
// the header is authenticated, and needs no pass of its own as additional data.
func putNonce(nonce *[nonceSize]byte, vni uint32, counter uint64) {
	binary.BigEndian.PutUint32(nonce[:], vni)
	binary.BigEndian.PutUint64(nonce[nonceSize-8:], counter)
}

// open returns what a data packet protects, in place; or why it is dropped. Callers
// hold mu.
func (k *sessionKey) open(nonce *[nonceSize]byte, h header, packet []byte) ([]byte, reason) {
	if !k.seen.fresh(h.counter) {
		return nil, replayed
	}
	putNonce(nonce, h.vni, h.counter)
	text, err := k.receive.Open(packet[headerSize:headerSize], nonce[:], packet[headerSize:], nil)
	if err != nil {
		return nil, forged
	}
	k.seen.note(h.counter)
	return text, 0
}
