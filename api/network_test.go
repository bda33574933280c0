package api

import (
	"net/netip"
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
