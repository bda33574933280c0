package linux

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// udpIdle is how long a flow may go without an answer.
	udpIdle = 90 * time.Second
	// relayBuffer is the largest datagram.
	relayBuffer = 64 << 10
)

// flowKey tells flows of datagrams to a port apart: who sends them, and to which of
// the host's addresses, by which the answers are to come.
type flowKey struct {
	from netip.AddrPort
	at   netip.Addr // zero: not known
}

// flow has a socket of its own towards the target.
type flow struct {
	target *net.UDPConn
	used   uint64 // number of the last datagram, of all of the relay's; guarded by relay.mu
}

// datagrams carries datagrams until the socket is closed.
func (r *relay) datagrams(l *net.UDPConn) {
	defer r.wg.Wait()
	buf, oob := make([]byte, relayBuffer), make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for number := uint64(1); ; number++ {
		n, oobn, _, from, err := l.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for some client
		}
		if f := r.flow(l, flowKey{from, arrivedAt(oob[:oobn])}, number); f != nil {
			_, _ = f.target.Write(buf[:n]) // as lossy as UDP
		}
	}
}

// flow returns the one that a datagram belongs to; nil if it can't be had. Where there
// are too many, the one that has carried nothing for longest ends. Only datagrams
// calls it.
func (r *relay) flow(l *net.UDPConn, k flowKey, number uint64) *flow {
	r.mu.Lock()
	f := r.flows[k]
	if f != nil {
		f.used = number
	}
	r.mu.Unlock()
	if f != nil {
		return f
	}
	f = &flow{used: number}
	err := r.p.inHost(func() (err error) {
		f.target, err = net.DialUDP(udpNetwork(r.target.Addr()), nil, net.UDPAddrFromAddrPort(r.target))
		return err
	})
	if err != nil {
		return nil
	}
	r.mu.Lock()
	if len(r.flows) >= maxRelayed {
		r.endOldest()
	}
	r.flows[k] = f
	r.mu.Unlock()
	r.wg.Go(func() {
		r.answers(l, f, k)
		r.mu.Lock()
		if r.flows[k] == f {
			delete(r.flows, k)
		}
		r.mu.Unlock()
	})
	return f
}

// endOldest ends the flow that was used longest ago. Callers hold mu.
func (r *relay) endOldest() {
	var oldest flowKey
	var f *flow
	for k, o := range r.flows {
		if f == nil || o.used < f.used {
			oldest, f = k, o
		}
	}
	delete(r.flows, oldest)
	_ = f.target.Close() // which ends its answers
}

// answers carries what the target sends back until it has been silent.
func (r *relay) answers(l *net.UDPConn, f *flow, k flowKey) {
	defer f.target.Close()
	defer context.AfterFunc(r.ctx, func() { f.target.Close() })()
	buf, oob := make([]byte, relayBuffer), leaveFrom(k.at)
	for {
		_ = f.target.SetReadDeadline(time.Now().Add(udpIdle))
		n, err := f.target.Read(buf)
		if err != nil {
			return
		}
		if _, _, err := l.WriteMsgUDPAddrPort(buf[:n], oob, k.from); err != nil {
			return
		}
	}
}

// tellArrival has a socket say at which of the host's addresses datagrams arrive: one
// that is bound to none would answer from whichever leads to the client.
func tellArrival(c *net.UDPConn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, unix.IP_PKTINFO
	if v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
		return err
	}
	return failed
}

// arrivedAt reads what tellArrival asks for; zero if it is not there.
func arrivedAt(oob []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(m.Data[4:8])) // ipi_spec_dst
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return netip.Addr{}
}

// leaveFrom has a datagram leave from an address of the host's.
func leaveFrom(a netip.Addr) []byte {
	switch {
	case a.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a.As4()})
	case a.Is6():
		return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a.As16()})
	}
	return nil
}
