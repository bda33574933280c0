package allocator

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"

	"github.com/legion-swarm/legion/api"
)

// maxHostBits is how many bits of an address a pool counts in: IPv6 subnets are
// /64 or smaller.
const maxHostBits = 64

// pool gives out the addresses of one subnet. Addresses are counted from the
// subnet's first; what is in use is a sparse set of bits, so that memory follows
// use and a full pool is passed over 64 addresses at a time. The cursor decides
// only which free address comes next: one that was just freed comes last.
type pool struct {
	subnet      netip.Prefix
	first, last uint64 // what is given out unasked
	words       map[uint64]uint64
	used        uint64 // all that is in use
	inside      uint64 // of it, what is from first to last
	next        uint64
}

// newPool returns a pool of a valid subnet; within limits what is given out
// unasked, and is the subnet if zero.
func newPool(subnet, within netip.Prefix) *pool {
	if !within.IsValid() {
		within = subnet
	}
	p := &pool{subnet: subnet, words: map[uint64]uint64{}}
	p.first = p.offset(within.Addr())
	p.last = p.first + hosts(within)
	if p.first == 0 && hosts(subnet) > 1 {
		p.first = 1 // the subnet's own
	}
	if p.last == hosts(subnet) && subnet.Addr().Is4() && hosts(subnet) > 1 {
		p.last-- // broadcast
	}
	p.next = p.first
	return p
}

// hosts returns the last offset in a prefix.
func hosts(p netip.Prefix) uint64 {
	n := p.Addr().BitLen() - p.Bits()
	if n >= maxHostBits {
		return math.MaxUint64
	}
	return 1<<n - 1
}

// offset of an address of the subnet.
func (p *pool) offset(a netip.Addr) uint64 { return low(a) - low(p.subnet.Addr()) }

func low(a netip.Addr) uint64 {
	b := a.As16()
	return binary.BigEndian.Uint64(b[8:])
}

func (p *pool) address(offset uint64) netip.Addr {
	b := p.subnet.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], low(p.subnet.Addr())+offset)
	a := netip.AddrFrom16(b)
	if p.subnet.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// take gives out the next free address; false if there is none.
func (p *pool) take() (netip.Prefix, bool) {
	if p.free() == 0 {
		return netip.Prefix{}, false
	}
	for at := p.next; ; {
		w := at / 64
		if free := ^p.words[w] >> (at % 64) << (at % 64); free != 0 {
			if o := w*64 + uint64(bits.TrailingZeros64(free)); o <= p.last {
				p.set(o)
				if p.next = o + 1; o == p.last {
					p.next = p.first
				}
				return netip.PrefixFrom(p.address(o), p.subnet.Bits()), true
			}
		} else if w < p.last/64 {
			at = (w + 1) * 64
			continue
		}
		at = p.first
	}
}

// takeThis gives out an address of the subnet that is asked for; it need not be among
// those that are given out unasked.
func (p *pool) takeThis(a netip.Addr, network string) (netip.Prefix, error) {
	o := p.offset(a)
	if p.words[o/64]&(1<<(o%64)) != 0 {
		return netip.Prefix{}, api.Errorf(api.Conflict, "network %s: Address already in use: %s", network, a)
	}
	p.set(o)
	return netip.PrefixFrom(a, p.subnet.Bits()), nil
}

// free returns how many addresses can be given out unasked.
func (p *pool) free() uint64 {
	if p.first > p.last {
		return 0 // the range has the subnet's own addresses alone
	}
	n := p.last - p.first
	if n == math.MaxUint64 {
		return n - p.inside
	}
	return n + 1 - p.inside
}

func (p *pool) set(o uint64) {
	if w := p.words[o/64]; w&(1<<(o%64)) == 0 {
		p.words[o/64] = w | 1<<(o%64)
		p.used++
		if o >= p.first && o <= p.last {
			p.inside++
		}
	}
}

// claim notes that an address is in use. Those that are not the subnet's are
// left out.
func (p *pool) claim(a netip.Addr) {
	if p.subnet.Contains(a) {
		p.set(p.offset(a))
	}
}

// release gives an address back; one that is not in use may be released.
func (p *pool) release(a netip.Addr) {
	if !p.subnet.Contains(a) {
		return
	}
	o := p.offset(a)
	w := p.words[o/64]
	if w&(1<<(o%64)) == 0 {
		return
	}
	p.used--
	if o >= p.first && o <= p.last {
		p.inside--
	}
	if w &^= 1 << (o % 64); w == 0 {
		delete(p.words, o/64)
	} else {
		p.words[o/64] = w
	}
}

// resume puts the cursor behind the highest address in use, so that a new leader
// does not first give out what was freed lately.
func (p *pool) resume() {
	top, found := uint64(0), false
	for w, set := range p.words {
		if o := w*64 + 63 - uint64(bits.LeadingZeros64(set)); o <= p.last && (!found || o > top) {
			top, found = o, true
		}
	}
	if p.next = p.first; found && top >= p.first && top < p.last {
		p.next = top + 1
	}
}

// String names the subnet and what is given out of it.
func (p *pool) String() string {
	return fmt.Sprintf("%s (%s to %s)", p.subnet, p.address(p.first), p.address(p.last))
}
