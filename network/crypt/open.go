package crypt

import "net/netip"

// Frame is what is to be given to the kernel, in order.
type Frame struct {
	VNI   uint32
	Parts [][]byte // the first is a virtio_net_hdr
}

// Opener turns packets into frames. It is used by one goroutine.
type Opener struct {
	node  *Node
	nonce [nonceSize]byte

	frames []Frame
	vnets  [][VnetHeader]byte // of frames
	parts  [][]byte           // of all frames
	hellos []Packet
	tick   bool
	run    run
	way    way
}

// way is how the packet before was handled, which the next one mostly shares. It holds
// for one call of Open.
type way struct {
	vni, key, tag uint32
	to            *sessionKey // its lock is held; nil: there is none
}

// change gives a way up for another one.
func (w *way) change(to way) {
	if w.to != nil {
		w.to.mu.Unlock()
	}
	if *w = to; w.to != nil {
		w.to.mu.Lock()
	}
}

// run are pieces of one frame that follow each other.
type run struct {
	vni     uint32
	key     *sessionKey
	first   piece
	last    piece
	counter uint64 // of last
	from    int    // first of its parts
	payload int
	open    bool // the next piece may be one more
}

// maxRun is how long a packet may be.
const maxRun = 65535

// NewOpener returns one for packets from other nodes.
func (n *Node) NewOpener() *Opener { return &Opener{node: n} }

// Open takes what came from a node at once: packets of size bytes, the last may be
// shorter. What it returns is valid until data is changed or Open is called again:
// frames for the kernel, hellos to be sent, and whether Tick is to be called.
func (o *Opener) Open(from netip.Addr, data []byte, size int) (frames []Frame, hellos []Packet, tick bool) {
	o.frames, o.vnets, o.parts, o.hellos, o.tick, o.run = o.frames[:0], o.vnets[:0], o.parts[:0], o.hellos[:0], false, run{}
	if size <= 0 {
		return nil, nil, false
	}
	v := o.node.view.Load()
	p := v.peers[from]
	for ; len(data) > 0; data = data[min(size, len(data)):] {
		packet := data[:min(size, len(data))]
		why := unknownNode
		if p != nil {
			why = o.packet(v, p, packet)
		}
		if why != 0 {
			o.node.counts.drop(why)
		}
	}
	o.way.change(way{})
	o.end()
	o.finish()
	return o.frames, o.hellos, o.tick
}

// packet takes one packet.
func (o *Opener) packet(v *view, p *peer, packet []byte) reason {
	if len(packet) > 0 && packet[0] == kindHello {
		o.way.change(way{}) // it may change
		o.hellos = o.node.takeHello(p, packet, o.hellos)
		return 0
	}
	h, ok := readHeader(packet)
	if !ok {
		return malformed
	}
	if w := &o.way; w.to == nil || w.vni != h.vni || w.key != h.key || w.tag != h.tag {
		to, why := o.find(v, p, h)
		if why != 0 {
			return why
		}
		w.change(way{h.vni, h.key, h.tag, to})
	}
	text, why := o.way.to.open(&o.nonce, h, packet)
	if why != 0 {
		return why
	}
	o.node.counts.received.Add(1)
	return o.piece(h, o.way.to, text)
}

// find returns what a packet of a node's is opened with.
func (o *Opener) find(v *view, p *peer, h header) (*sessionKey, reason) {
	n := v.networks[h.vni]
	if n == nil {
		return nil, unknownNetwork
	}
	if _, ok := n.peers[p]; !ok {
		return nil, unknownNode
	}
	s := p.session.Load()
	if s == nil || s.receiveTag != h.tag {
		o.tick = p.unknown(o.node.now()) || o.tick
		return nil, noSession
	}
	k := s.key(h.key)
	if k == nil {
		return nil, noKey
	}
	return k, 0
}

// piece takes what a packet of a known node protects.
func (o *Opener) piece(h header, k *sessionKey, text []byte) reason {
	p, f := readPiece(text), text[pieceHeader:]
	if len(f) < ethernet {
		return malformed
	}
	if !p.tcp() {
		if p.gso != gsoNone {
			return malformed
		}
		p.headers, p.size = 0, 0
		o.begin(h, k, p, f)
		o.end()
		return 0
	}
	q := p
	if !q.measure(f) || q.headers != p.headers || len(f)-int(p.headers) > int(p.size) {
		return malformed
	}
	payload := f[p.headers:]
	r := &o.run
	if r.open && r.vni == h.vni && r.key == k && h.counter == r.counter+1 && p.index == r.last.index+1 && p.headers == r.first.headers &&
		p.size == r.first.size && p.gso == r.first.gso && p.sumStart == r.first.sumStart && int(p.headers)+r.payload+len(payload) <= maxRun {
		o.parts = append(o.parts, payload)
	} else {
		o.begin(h, k, p, f)
	}
	r.last, r.counter = p, h.counter
	r.payload += len(payload)
	r.open = p.flags&pieceLast == 0 && len(payload) == int(p.size)
	return 0
}

// begin begins a run with a piece.
func (o *Opener) begin(h header, k *sessionKey, p piece, f []byte) {
	o.end()
	o.parts = append(o.parts, nil, f) // the first when all are known
	o.run = run{vni: h.vni, key: k, first: p, last: p, counter: h.counter, from: len(o.parts) - 2}
}

// end makes a frame of the run, if there is one.
func (o *Opener) end() {
	r := &o.run
	if r.key == nil {
		return
	}
	p, f := r.first, o.parts[r.from+1]
	if p.tcp() {
		p.adjust(f, r.payload, r.last.flags&pieceLast != 0)
		if r.payload <= int(p.size) {
			p.gso = gsoNone
		}
	}
	size := 0
	for _, part := range o.parts[r.from+1:] {
		size += len(part)
	}
	o.node.counts.receivedBytes.Add(uint64(size))
	var b [VnetHeader]byte
	p.putVnet(b[:])
	o.vnets = append(o.vnets, b)
	o.frames = append(o.frames, Frame{VNI: r.vni, Parts: o.parts[r.from:len(o.parts):len(o.parts)]})
	o.run = run{}
}

// finish puts the headers in their places, which don't move any more.
func (o *Opener) finish() {
	at := 0
	for i := range o.frames {
		n := len(o.frames[i].Parts)
		o.frames[i].Parts = o.parts[at : at+n : at+n]
		o.frames[i].Parts[0] = o.vnets[i][:]
		at += n
	}
}
