// Package crypt is how encrypted overlays' frames go between nodes: what a packet
// looks like, how it is protected, and how two nodes agree on what protects it. It
// does no I/O and has no clock; package network/linux drives it.
//
// A packet is a UDP datagram:
//
//	0   kind (0x11 data, 0x12 hello)
//	1   VXLAN id of the overlay, 3 bytes; 0 in a hello
//	4   id of the key, 4 bytes
//	8   data: tag of the session, 4 bytes, and counter, 8 bytes; hello: nonce, 12 bytes
//	20  AES-128-GCM; all before is authenticated, too
//
// What a data packet protects is a piece of a frame: 12 bytes that say what the
// kernel says of a frame (struct virtio_net_hdr) and which piece it is, and then the
// piece, which begins with the frame's headers, so that it means something when
// others are lost. Pieces are as long as the packets that the kernel would have made
// of the frame.
//
// Each pair of nodes has keys of its own in each direction, derived from the swarm's
// by HKDF-SHA256 from both addresses and a random number of either node, new with
// each start of a node and each time that it gets to know the other. So a counter
// never comes twice under a key, and nothing that was recorded before a start is
// accepted after it. The numbers are told in hellos, which are believed when they
// answer a challenge.
package crypt
