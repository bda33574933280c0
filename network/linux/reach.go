package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// reach has a subnet be on a device's link, which is up.
func (r *requests) reach(index uint32, to netip.Prefix) {
	r.begin("route to "+to.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE,
		inet(to.Addr()), byte(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0) // struct rtmsg
	r.attr(unix.RTA_DST, to.Addr().AsSlice()...)
	r.number(unix.RTA_OIF, index)
}

// dropReach removes such a route, if it is there.
func (r *requests) dropReach(index uint32, to netip.Prefix) {
	r.begin("remove the route to "+to.String(), unix.RTM_DELROUTE, 0,
		inet(to.Addr()), byte(to.Bits()), 0, 0, unix.RT_TABLE_MAIN, 0, unix.RT_SCOPE_NOWHERE, 0, 0, 0, 0, 0)
	r.attr(unix.RTA_DST, to.Addr().AsSlice()...)
	r.number(unix.RTA_OIF, index)
	r.tolerate(unix.ESRCH)
}

// changeRoutes has an interface that goes on reach what it should. One that its
// container has taken away, or down, is left alone.
func (n *inside) changeRoutes(have, want *network.Interface) error {
	if slices.Equal(have.Routes, want.Routes) {
		return nil
	}
	index, err := n.in.index(want.Name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", want.Name, err)
	}
	for _, to := range have.Routes {
		if !slices.Contains(want.Routes, to) {
			n.in.dropReach(index, to)
		}
	}
	for _, to := range want.Routes {
		n.in.reach(index, to)
	}
	if err := n.in.run(); err != nil && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("interface %s: %w", want.Name, err)
	}
	return nil
}
