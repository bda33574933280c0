package linux

import (
	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// filterConn speaks to the packet filter of a namespace. It is used by one goroutine.
type filterConn struct {
	*nftables.Conn
	sets uint32 // that it has added
}

// openFilter opens a netlink socket for rules in a namespace.
func openFilter(ns int) (*filterConn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(ns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			// Without the right to force it the default must do.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		})
	}))
	return &filterConn{Conn: c}, err
}

// AddSet adds a set with a number of its own in the transaction. The library's numbers
// are of one counter for all connections, which nothing guards: two at a time could
// give two sets of a transaction the same one.
func (c *filterConn) AddSet(s *nftables.Set, elements []nftables.SetElement) error {
	c.sets++
	s.ID = c.sets
	if s.Anonymous {
		s.Name = "__set%d"
		if s.IsMap {
			s.Name = "__map%d"
		}
	}
	return c.Conn.AddSet(s, elements)
}
