package crypt

import "sync/atomic"

// reason is why a frame or packet is dropped; 0: it is not.
type reason uint8

const (
	noKey reason = iota + 1
	noSession
	unknownNode
	unknownNetwork
	unknownAddress
	malformed
	forged
	replayed
	reasons
)

// counts are of a Node. Safe for concurrent use.
type counts struct {
	sent, received, sentBytes, receivedBytes atomic.Uint64
	dropped                                  [reasons]atomic.Uint64
}

func (c *counts) drop(r reason) { c.dropped[r].Add(1) }

// Counts is what a Node has carried and dropped since its start, in packets and
// bytes of frames.
type Counts struct {
	Sent, Received, SentBytes, ReceivedBytes uint64
	// Dropped by why: of frames that are to be sent, "no-key", "no-session" (the
	// other node has not answered yet) and "unknown-address"; of packets received,
	// the others, too.
	Dropped map[string]uint64
}

// Counts may be called at any time.
func (n *Node) Counts() Counts {
	c := Counts{
		Sent: n.counts.sent.Load(), Received: n.counts.received.Load(), SentBytes: n.counts.sentBytes.Load(),
		ReceivedBytes: n.counts.receivedBytes.Load(), Dropped: map[string]uint64{},
	}
	for r, name := range [reasons]string{
		noKey: "no-key", noSession: "no-session", unknownNode: "unknown-node", unknownNetwork: "unknown-network",
		unknownAddress: "unknown-address", malformed: "malformed", forged: "forged", replayed: "replayed",
	} {
		if name != "" {
			c.Dropped[name] = n.counts.dropped[r].Load()
		}
	}
	return c
}
