package crypt

import "net/netip"

const (
	// maxPieces is how many datagrams the kernel takes at once (UDP_MAX_SEGMENTS of
	// older ones), and maxBatch how many bytes.
	maxPieces = 64
	maxBatch  = maxDatagram
	// Kept is how many times what a Sealer returns is valid.
	Kept = 4
)

// Pieces is how many packets a frame may be that Next returns at once, in a network
// with that MTU.
func Pieces(mtu int) int {
	return max(min(maxPieces, maxBatch/(minData+ethernet+mtu)), 1)
}

// Sealer turns frames into packets. It is used by one goroutine.
type Sealer struct {
	node  *Node
	out   [Kept][]byte
	turn  int // which of out the batch is in
	nonce [nonceSize]byte

	// Of the frame that is under way.
	vni     uint32
	frame   []byte
	p       piece
	at      int // in frame, of what is not sealed yet
	peer    *peer
	session *session
	key     *sessionKey

	batch batch
}

// batch are packets for a node that go at once, in a Sealer's out: all of a size, the
// last may be shorter.
type batch struct {
	to   netip.Addr
	data []byte
	size int
	n    int
}

// room reports whether one more packet may go with those that are there.
func (b *batch) room(to netip.Addr, size int) bool {
	return b.n == 0 || b.to == to && size <= b.size && !b.full()
}

// full reports whether no packet may be added.
func (b *batch) full() bool {
	return b.n == maxPieces || len(b.data) < b.n*b.size || len(b.data)+b.size > maxBatch
}

// NewSealer returns one for frames that go to other nodes.
func (n *Node) NewSealer() *Sealer {
	s := &Sealer{node: n}
	for i := range s.out {
		s.out[i] = make([]byte, maxBatch)
	}
	return s
}

// Begin takes a frame of a network as the kernel gives it, with its virtio_net_hdr.
// Next returns its packets, until the frame is changed; what it keeps back, Flush
// returns. One that goes nowhere is dropped and counted.
func (s *Sealer) Begin(vni uint32, frame []byte) {
	s.frame = nil
	if why := s.begin(vni, frame); why != 0 {
		s.node.counts.drop(why)
		s.frame = nil
	}
}

func (s *Sealer) begin(vni uint32, frame []byte) reason {
	if len(frame) < VnetHeader+ethernet {
		return malformed
	}
	v := s.node.view.Load()
	o := v.networks[vni]
	if o == nil {
		return unknownNetwork
	}
	f := frame[VnetHeader:]
	if s.peer = o.byMAC[MAC(f)]; s.peer == nil {
		return unknownAddress
	}
	if s.session = s.peer.session.Load(); s.session == nil {
		return noSession
	}
	if s.key = s.session.key(v.send); s.key == nil {
		return noKey
	}
	s.p = vnet(frame)
	if s.p.tcp() {
		if !s.p.measure(f) || minData+int(s.p.headers)+int(s.p.size) > maxBatch {
			return malformed
		}
	} else if s.p.gso != gsoNone || minData+len(f) > maxBatch {
		return malformed
	}
	s.vni, s.frame, s.at = vni, f, int(s.p.headers)
	s.node.counts.sentBytes.Add(uint64(len(f)))
	return 0
}

// Next returns packets for a node, one after the other in data, each of size bytes
// but the last, which may be shorter; false when there are no more of this frame. data
// is valid until Next and Flush have returned Kept-1 others and any method is called
// again. A packet that is a whole frame is kept
// back, so that those of frames that follow go with it.
func (s *Sealer) Next() (to netip.Addr, data []byte, size int, ok bool) {
	if s.frame == nil {
		return netip.Addr{}, nil, 0, false
	}
	if s.p.gso != gsoNone {
		if s.batch.n > 0 {
			return s.Flush()
		}
		return s.pieces()
	}
	if !s.batch.room(s.peer.addr, minData+len(s.frame)) {
		return s.Flush()
	}
	s.p.flags |= pieceLast
	s.add(minData+len(s.frame), nil, s.frame)
	s.frame = nil
	if s.batch.full() {
		return s.Flush()
	}
	return netip.Addr{}, nil, 0, false
}

// pieces returns as many of a frame as go at once.
func (s *Sealer) pieces() (to netip.Addr, data []byte, size int, ok bool) {
	headers := s.frame[:s.p.headers]
	for most := minData + len(headers) + int(s.p.size); s.frame != nil && (s.batch.n == 0 || !s.batch.full()); {
		part := s.frame[s.at:]
		if len(part) > int(s.p.size) {
			part = part[:s.p.size]
		} else {
			s.p.flags |= pieceLast
			s.frame = nil
		}
		s.add(most, headers, part)
		s.at += len(part)
		s.p.index++
	}
	return s.Flush()
}

// add seals a packet of the frame behind those of the batch. The first says how long
// they are.
func (s *Sealer) add(size int, headers, part []byte) {
	b := &s.batch
	if b.n == 0 {
		b.to, b.data, b.size = s.peer.addr, s.out[s.turn][:0], size
	}
	b.data = s.seal(b.data, headers, part)
	b.n++
}

// Flush returns what was kept back, as Next does; false if there is nothing.
func (s *Sealer) Flush() (to netip.Addr, data []byte, size int, ok bool) {
	b := s.batch
	if s.batch = (batch{}); b.n > 0 {
		s.turn = (s.turn + 1) % Kept
	}
	s.node.counts.sent.Add(uint64(b.n))
	return b.to, b.data, b.size, b.n > 0
}

// seal adds a packet with the parts of a frame.
func (s *Sealer) seal(out, headers, part []byte) []byte {
	from := len(out)
	text := pieceHeader + len(headers) + len(part)
	out = out[:from+headerSize+text]
	packet := out[from:]
	counter := s.key.counter.Add(1)
	header{vni: s.vni, key: s.key.id, tag: s.session.sendTag, counter: counter}.put(packet)
	s.p.put(packet[headerSize:])
	copy(packet[headerSize+pieceHeader:], headers)
	copy(packet[headerSize+pieceHeader+len(headers):], part)
	putNonce(&s.nonce, s.vni, counter)
	s.key.send.Seal(packet[headerSize:headerSize], s.nonce[:], packet[headerSize:], nil)
	return out[:len(out)+tagSize]
}
