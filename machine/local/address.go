package local

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Machines' addresses begin here, as docker-machine's do; the lower ones are
// given out last.
const firstHost = 101

var errNoSubnet = errors.New("no subnet for machines is free: all of 192.168.0.0/24 … 192.168.99.0/24 meet a route of this host")

// chooseSubnet returns the first of 192.168.99.0/24, 192.168.98.0/24 … that
// overlaps none of those taken.
func chooseSubnet(taken []netip.Prefix) (netip.Prefix, error) {
next:
	for i := 99; i >= 0; i-- {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 24)
		for _, t := range taken {
			if t.Bits() > 0 && t.Overlaps(p) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errNoSubnet
}

// gateway is the host's address in the subnet.
func gateway(subnet netip.Prefix) netip.Addr { return host(subnet, 1) }

func host(subnet netip.Prefix, n byte) netip.Addr {
	b := subnet.Masked().Addr().As4()
	b[3] = n
	return netip.AddrFrom4(b)
}

// allocate returns an address that no machine has.
func allocate(subnet netip.Prefix, hosts map[string]netip.Addr) (netip.Addr, error) {
	used := make(map[netip.Addr]bool, len(hosts))
	for _, a := range hosts {
		used[a] = true
	}
	const lowest, highest = 2, 254
	for n := firstHost; n < firstHost+highest-lowest+1; n++ {
		if a := host(subnet, byte(lowest+(n-lowest)%(highest-lowest+1))); !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("all addresses of %v are taken by %d machines: remove some", subnet, len(hosts))
}

// hardwareAddr follows from the address, so that nobody's neighbour table is
// wrong when an address is given out again.
func hardwareAddr(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x1e, b[0], b[1], b[2], b[3]}
}

// port is the name of the machine's side of the fabric.
func port(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("port%d", b[3])
}
