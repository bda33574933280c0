package crypt

import "net/netip"

const (
	// maxPieces is how many datagrams the kernel takes at once (UDP_MAX_SEGMENTS of
	// older ones), and maxBatch how many bytes.
	maxPieces = 64
	maxBatch  = maxDatagram
)

// Pieces is how many packets a frame may be that Next returns at once, in a network
// with that MTU.
func Pieces(mtu int) int {
	return max(min(maxPieces, maxBatch/(minData+ethernet+mtu)), 1)
}

// Sealer turns frames into packets. It is used by one goroutine.
type Sealer struct {
	node  *Node
	out   []byte
	nonce [nonceSize]byte

	// Of the frame that is under way.
	vni     uint32
	frame   []byte
	p       piece
	at      int // in frame, of what is not sealed yet
	peer    *peer
	session *session
	key     *sessionKey
}

// NewSealer returns one for frames that go to other nodes.
func (n *Node) NewSealer() *Sealer { return &Sealer{node: n, out: make([]byte, maxBatch)} }

// Begin takes a frame of a network as the kernel gives it, with its virtio_net_hdr.
// Next returns its packets, until the frame is changed. One that goes nowhere is
// dropped and counted.
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
// but the last, which may be shorter; false when there are no more. data is valid
// until the next call.
func (s *Sealer) Next() (to netip.Addr, data []byte, size int, ok bool) {
	if s.frame == nil {
		return netip.Addr{}, nil, 0, false
	}
	if s.p.gso == gsoNone {
		s.p.flags |= pieceLast
		data = s.seal(s.out[:0], nil, s.frame)
		s.frame = nil
		s.node.counts.sent.Add(1)
		return s.peer.addr, data, len(data), true
	}
	headers := s.frame[:s.p.headers]
	size = minData + len(headers) + int(s.p.size)
	n := 0
	for data = s.out[:0]; n < maxPieces && len(data)+size <= maxBatch && s.frame != nil; n++ {
		part := s.frame[s.at:]
		if len(part) > int(s.p.size) {
			part = part[:s.p.size]
		} else {
			s.p.flags |= pieceLast
			s.frame = nil
		}
		data = s.seal(data, headers, part)
		s.at += len(part)
		s.p.index++
	}
	s.node.counts.sent.Add(uint64(n))
	return s.peer.addr, data, size, true
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
	putNonce(&s.nonce, counter)
	s.key.send.Seal(packet[headerSize:headerSize], s.nonce[:], packet[headerSize:], packet[:headerSize])
	return out[:len(out)+tagSize]
}
