package linux

import (
	"encoding/binary"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// requests is a socket for devices, addresses and routes of one namespace, and what
// is to be asked of it next: many things at once, since the way to the kernel and
// back costs as much as most of them do. Not safe for concurrent use.
type requests struct {
	fd int
	messages
	lender *lender // nil: nobody else gets it
}

// openRequests opens one in the thread's namespace.
func openRequests() (*requests, error) {
	fd, err := openNetlink(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return &requests{fd: fd}, nil
}

func (r *requests) shut() { _ = unix.Close(r.fd) }

// run has the kernel do what was asked for, all of it also if some fails. It returns
// the first error.
func (r *requests) run() error {
	if r.empty() {
		return nil
	}
	r.flagLast(unix.NLM_F_ACK)
	return r.send(r.fd, r.count())
}

// index returns a device's number. It takes none of the kernel's locks.
func (r *requests) index(device string) (uint32, error) {
	req, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(r.fd, unix.SIOCGIFINDEX, req)
	}
	if err != nil {
		return 0, err
	}
	return req.Uint32(), nil
}

// linkHeader is struct ifinfomsg; flags are those to be set.
func linkHeader(index, flags uint32) []byte {
	b := make([]byte, 0, unix.SizeofIfInfomsg)
	b = append(b, unix.AF_UNSPEC, 0, 0, 0)
	b = native(b, index)
	b = native(b, flags)
	return native(b, flags)
}

// up sets a device up, with some of its properties: limit segments to most, if that
// is not 0.
func (r *requests) up(what string, index, most uint32) {
	r.begin(what, unix.RTM_NEWLINK, 0, linkHeader(index, unix.IFF_UP)...)
	if most > 0 {
		r.number(unix.IFLA_GSO_MAX_SEGS, most)
	}
}

// veth makes a pair: one end here, on a bridge, the other in the namespace that is
// open as ns; both down. mtu may be 0: the kernel's choice. Both have one queue:
// unasked, the kernel makes one for each processor and takes all but one away again,
// for which it waits twice until all processors have noticed, with its lock of
// devices held.
func (r *requests) veth(name string, bridge uint32, mtu int, peer string, mac []byte, ns int) {
	r.begin("make veth "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	r.oneQueue()
	r.mtu(mtu)
	r.number(unix.IFLA_MASTER, bridge)
	info := r.nest(unix.IFLA_LINKINFO)
	r.text(unix.IFLA_INFO_KIND, "veth")
	data := r.nest(unix.IFLA_INFO_DATA)
	other := r.nest(nl.VETH_INFO_PEER)
	r.buf = append(r.buf, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, peer)
	r.attr(unix.IFLA_ADDRESS, mac...)
	r.oneQueue()
	r.mtu(mtu)
	r.number(unix.IFLA_NET_NS_FD, uint32(ns))
	r.close(other)
	r.close(data)
	r.close(info)
}

func (r *requests) oneQueue() {
	r.number(unix.IFLA_NUM_TX_QUEUES, 1)
	r.number(unix.IFLA_NUM_RX_QUEUES, 1)
}

func (r *requests) mtu(mtu int) {
	if mtu > 0 {
		r.number(unix.IFLA_MTU, uint32(mtu))
	}
}

// macvlan makes an interface on a device, in the namespace that is open as ns. mac
// may be empty: it has its parent's.
func (r *requests) macvlan(name string, parent, mode uint32, mtu int, mac []byte, ns int) {
	r.begin("make macvlan "+name, unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	r.mtu(mtu)
	r.number(unix.IFLA_LINK, parent)
	r.number(unix.IFLA_NET_NS_FD, uint32(ns))
	if len(mac) > 0 {
		r.attr(unix.IFLA_ADDRESS, mac...)
	}
	info := r.nest(unix.IFLA_LINKINFO)
	r.text(unix.IFLA_INFO_KIND, "macvlan")
	data := r.nest(unix.IFLA_INFO_DATA)
	r.number(nl.IFLA_MACVLAN_MODE, mode)
	r.close(data)
	r.close(info)
}

// settle has a device that carries since a moment ago do so: until the kernel's watch
// of links has seen it, which may take long where its lock of devices is wanted by
// many, the device drops what is sent. To ask for it has it seen (Linux 6.8).
func (r *requests) settle(name string) {
	const noStatistics = 8 // RTEXT_FILTER_SKIP_STATS
	r.begin("look at "+name, unix.RTM_GETLINK, 0, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	r.number(unix.IFLA_EXT_MASK, noStatistics)
}

// noLinkLocal has a device get no address of its link when it is set up.
func (r *requests) noLinkLocal(name string) {
	r.begin("no link-local address for "+name, unix.RTM_NEWLINK, 0, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	families := r.nest(unix.IFLA_AF_SPEC | unix.NLA_F_NESTED)
	six := r.nest(unix.AF_INET6 | unix.NLA_F_NESTED)
	r.attr(unix.IFLA_INET6_ADDR_GEN_MODE, 1) // IN6_ADDR_GEN_MODE_NONE
	r.close(six)
	r.close(families)
	r.tolerate(unix.EAFNOSUPPORT) // it has no IPv6
}

// looseReverse has a device accept IPv4 packets from all that is routed anywhere.
func (r *requests) looseReverse(name string, index uint32) {
	const reverse, loose = 8, 2 // IPV4_DEVCONF_RP_FILTER
	r.begin("reverse path filter of "+name, unix.RTM_NEWLINK, 0, linkHeader(index, 0)...)
	families := r.nest(unix.IFLA_AF_SPEC | unix.NLA_F_NESTED)
	four := r.nest(unix.AF_INET | unix.NLA_F_NESTED)
	settings := r.nest(unix.IFLA_INET_CONF | unix.NLA_F_NESTED)
	r.number(reverse, loose)
	r.close(settings)
	r.close(four)
	r.close(families)
}

// port says what only a bridge's port has, gives the device its alias and sets it up.
func (r *requests) port(name string, isolated bool, alias string) {
	r.begin("mark "+name, unix.RTM_NEWLINK, 0, linkHeader(0, unix.IFF_UP)...)
	r.text(unix.IFLA_IFNAME, name)
	r.text(unix.IFLA_IFALIAS, alias)
	info := r.nest(unix.IFLA_LINKINFO)
	r.text(unix.IFLA_INFO_SLAVE_KIND, "bridge")
	data := r.nest(unix.IFLA_INFO_SLAVE_DATA)
	r.attr(unix.IFLA_BRPORT_MODE, 1) // hairpin
	if isolated {
		r.attr(unix.IFLA_BRPORT_ISOLATED, 1)
	}
	r.close(data)
	r.close(info)
}

// alias gives a device one.
func (r *requests) alias(name, alias string) {
	r.begin("mark "+name, unix.RTM_NEWLINK, 0, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	r.text(unix.IFLA_IFALIAS, alias)
}

// dropLink removes a device, if it is there.
func (r *requests) dropLink(name string) {
	r.begin("remove "+name, unix.RTM_DELLINK, 0, linkHeader(0, 0)...)
	r.text(unix.IFLA_IFNAME, name)
	r.tolerate(unix.ENODEV)
}

// address gives a device one. IPv6 ones are not probed for duplicates: the pool sees
// to that, and probing would take a second.
func (r *requests) address(index uint32, a netip.Prefix) {
	flags := byte(0)
	if a.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	fixed := native([]byte{inet(a.Addr()), byte(a.Bits()), flags, unix.RT_SCOPE_UNIVERSE}, index) // struct ifaddrmsg
	r.begin("address "+a.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, fixed...)
	ip := a.Addr().AsSlice()
	r.attr(unix.IFA_LOCAL, ip...)
	r.attr(unix.IFA_ADDRESS, ip...)
	if a.Addr().Is4() && a.Bits() < 31 {
		b := a.Addr().As4()
		for i := a.Bits(); i < 32; i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		r.attr(unix.IFA_BROADCAST, b[:]...)
	}
}

// gateway makes the default route of a family lead to an address.
func (r *requests) gateway(to netip.Addr) {
	r.begin("default route via "+to.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		inet(to), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0) // struct rtmsg
	r.attr(unix.RTA_GATEWAY, to.AsSlice()...)
}

// dropGateway removes the default route of a family, if there is one.
func (r *requests) dropGateway(f byte) {
	r.begin("remove the default route", unix.RTM_DELROUTE, 0, f, 0, 0, 0, unix.RT_TABLE_MAIN, 0, unix.RT_SCOPE_NOWHERE, 0, 0, 0, 0, 0)
	r.tolerate(unix.ESRCH)
}

// neighbour says for ever who has an address.
func (r *requests) neighbour(index uint32, a netip.Addr, mac []byte) {
	fixed := native([]byte{inet(a), 0, 0, 0}, index)   // struct ndmsg
	fixed = append(fixed, unix.NUD_PERMANENT, 0, 0, 0) // state, flags, type
	r.begin("neighbour "+a.String(), unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fixed...)
	r.attr(unix.NDA_DST, a.AsSlice()...)
	r.attr(unix.NDA_LLADDR, mac...)
}

// everything has all that is looked up in a routing table go to an address on a
// device's link.
func (r *requests) everything(index, table uint32, to netip.Addr) {
	fixed := []byte{inet(to), 0, 0, 0, unix.RT_TABLE_UNSPEC, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	r.begin("route via "+to.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, native(fixed, unix.RTNH_F_ONLINK)...)
	r.number(unix.RTA_TABLE, table)
	r.number(unix.RTA_OIF, index)
	r.attr(unix.RTA_GATEWAY, to.AsSlice()...)
}

// rule has packets with a mark looked up in a routing table; all packets if mask is
// 0. One that is there stays.
func (r *requests) rule(what string, f byte, table, priority, mark, mask uint32) {
	r.begin(what, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		f, 0, 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0) // struct fib_rule_hdr
	r.number(unix.FRA_PRIORITY, priority)
	r.number(unix.FRA_TABLE, table)
	if mask != 0 {
		r.number(unix.FRA_FWMARK, mark)
		r.number(unix.FRA_FWMASK, mask)
	}
	r.tolerate(unix.EEXIST)
}

// dropRule removes a routing rule, if it is there.
func (r *requests) dropRule(what string, f byte, table, priority uint32) {
	r.begin("remove the "+what, unix.RTM_DELRULE, 0, f, 0, 0, 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0)
	r.number(unix.FRA_PRIORITY, priority)
	r.number(unix.FRA_TABLE, table)
	r.tolerate(unix.ENOENT)
}

func native(b []byte, v uint32) []byte {
	return binary.NativeEndian.AppendUint32(b, v)
}

// inet is the number of an address's family.
func inet(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// lender lends sockets of one namespace. Safe for concurrent use.
type lender struct {
	mu     sync.Mutex
	free   []*requests
	closed bool
}

// maxFree is how many sockets a lender keeps that nobody uses.
const maxFree = 8

// borrow returns one that is free, or what open opens. Give it back.
func (l *lender) borrow(open func() (*requests, error)) (*requests, error) {
	l.mu.Lock()
	if n := len(l.free); n > 0 {
		defer l.mu.Unlock()
		r := l.free[n-1]
		l.free = l.free[:n-1]
		return r, nil
	}
	l.mu.Unlock()
	r, err := open()
	if err == nil {
		r.lender = l
	}
	return r, err
}

// giveBack ends its use.
func (r *requests) giveBack() {
	r.forget()
	l := r.lender
	if l == nil {
		r.shut()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.free) >= maxFree {
		r.shut()
		return
	}
	l.free = append(l.free, r)
}

// shut closes all, those that are lent when they come back.
func (l *lender) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, r := range l.free {
		r.shut()
	}
	l.free = nil
}
