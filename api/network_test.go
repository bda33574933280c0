package api

import (
	"net/netip"
	"slices"
	"testing"
)

func TestOwnOfSubnet(t *testing.T) {
	for subnet, own := range map[string]map[string]bool{
		"10.1.0.0/29":        {"10.1.0.0": true, "10.1.0.1": false, "10.1.0.6": false, "10.1.0.7": true, "10.1.0.8": false},
		"10.1.0.0/31":        {"10.1.0.0": false, "10.1.0.1": false},
		"255.255.255.252/30": {"255.255.255.255": true, "255.255.255.254": false},
		"fd00::/64":          {"fd00::": true, "fd00::1": false, "fd00::ffff:ffff:ffff:ffff": false},
		"fd00::/127":         {"fd00::": false},
	} {
		for a, want := range own {
			if got := OwnOfSubnet(netip.MustParsePrefix(subnet), netip.MustParseAddr(a)); got != want {
				t.Errorf("%s of %s: %v", a, subnet, got)
			}
		}
	}
}

func TestVNIs(t *testing.T) {
	network := func(option string) *Network {
		n := &Network{}
		n.DriverState.Options = map[string]string{OptionVNIs: option}
		return n
	}
	for option, want := range map[string][]uint32{"": nil, "4097": {4097}, "4097,4100": {4097, 4100}, "0": nil, "x,4097": {4097}, "16777216": nil} {
		n := network(option)
		if got := slices.Collect(n.VNIs()); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", option, got, want)
		}
		if first := n.VNI(); len(want) > 0 && first != want[0] || len(want) == 0 && first != 0 {
			t.Errorf("%q: %d", option, first)
		}
	}
	for other, clash := range map[string]bool{"": false, "4098": false, "4097": true, "4100": true, "4098,4100": true, "5000,4101": false} {
		if a, b := network("4097,4100"), network(other); a.Clashes(b) != clash || b.Clashes(a) != clash {
			t.Errorf("with %q: %v", other, a.Clashes(b))
		}
	}
	if network("").Clashes(network("")) {
		t.Error("two that have no id clash")
	}
}
