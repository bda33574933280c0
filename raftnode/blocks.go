package raftnode

import "reflect"

// diskBlock divides where the log is written and how much of it at once, so that
// it can go past the page cache. It is a multiple of what disks and file systems
// ask for.
const diskBlock = 4096

// blocks returns memory for n bytes and the rest of their last block, where direct
// I/O may have it: b's, if that is enough.
func blocks(b []byte, n int) []byte {
	n = wholeBlocks(n)
	if cap(b) >= n {
		return b[:n]
	}
	room := make([]byte, n+diskBlock)
	at := -reflect.ValueOf(room).Pointer() % diskBlock
	return room[at:][:n:n]
}

// wholeBlocks rounds up.
func wholeBlocks(n int) int { return (n + diskBlock - 1) / diskBlock * diskBlock }
