package linux

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Whatever changes is told to all sockets that listen, and a pair that comes or goes
// is some twenty messages. Most say that all is well: the kernel drops those before
// they are queued, and nobody wakes to read them.

// hearing is a filter of what is told of devices, addresses, neighbours, routes and
// rules. It keeps what routeDrift or overlayDrift may take for damage.
func hearing() []unix.SockFilter {
	const ( // in a message
		kindAt   = 4
		familyAt = unix.SizeofNlMsghdr
		flagsAt  = unix.SizeofNlMsghdr + 8  // of ifinfomsg
		scopeAt  = unix.SizeofNlMsghdr + 3  // of ifaddrmsg
		selfAt   = unix.SizeofNlMsghdr + 10 // flags of ndmsg
		attrsAt  = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	)
	const (
		eight  = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		half   = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		word   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		number = unix.BPF_LD | unix.BPF_IMM
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bit    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		end    = unix.BPF_RET | unix.BPF_K
		// findAttr loads where the attribute is whose number is in X, from the place in A
		// on; 0: nowhere (SKF_AD_OFF + SKF_AD_NLATTR).
		findAttr = 0xfffff000 + 12
	)
	// A filter loads numbers in the network's order, these are in the machine's.
	kind := func(k uint16) uint32 {
		return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, k)))
	}
	flag := func(f uint32) uint32 { return binary.BigEndian.Uint32(native(nil, f)) }
	return []unix.SockFilter{
		{Code: half, K: kindAt},
		{Code: equal, K: kind(unix.RTM_NEWLINK), Jt: 6},   // to 8
		{Code: equal, K: kind(unix.RTM_NEWNEIGH), Jt: 14}, // to 17
		{Code: equal, K: kind(unix.RTM_NEWADDR), Jt: 17},  // to 21
		{Code: equal, K: kind(unix.RTM_DELADDR), Jt: 16},  // to 21
		{Code: equal, K: kind(unix.RTM_NEWROUTE), Jt: 20}, // dropped
		{Code: equal, K: kind(unix.RTM_NEWRULE), Jt: 19},  // dropped
		{Code: end, K: 1 << 20},                           // kept
		// 8. A device that is up, carries and is a port of something is as it should be.
		{Code: eight, K: familyAt},
		{Code: equal, K: unix.AF_UNSPEC, Jf: 16}, // dropped: what a bridge says of it
		{Code: word, K: flagsAt},
		{Code: bit, K: flag(unix.IFF_UP), Jf: 13},
		{Code: bit, K: flag(unix.IFF_LOWER_UP), Jf: 12},
		{Code: unix.BPF_LDX | unix.BPF_IMM, K: unix.IFLA_MASTER},
		{Code: number, K: attrsAt},
		{Code: word, K: findAttr},
		{Code: equal, K: 0, Jt: 8, Jf: 9},
		// 17. Of forwarding, a tunnel's own entries count.
		{Code: eight, K: familyAt},
		{Code: equal, K: unix.AF_BRIDGE, Jf: 7},
		{Code: eight, K: selfAt},
		{Code: bit, K: unix.NTF_SELF, Jt: 4, Jf: 5},
		// 21. Of IPv6, addresses of a link are the kernel's.
		{Code: eight, K: familyAt},
		{Code: equal, K: unix.AF_INET6, Jf: 2},
		{Code: eight, K: scopeAt},
		{Code: equal, K: unix.RT_SCOPE_LINK, Jt: 1},
		{Code: end, K: 1 << 20}, // kept
		{Code: end, K: 0},       // dropped
	}
}

// hearLess sets a socket's filter. Without one it is only woken more often.
func hearLess(fd int) error {
	f := hearing()
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]})
}
