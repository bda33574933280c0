package linux

import (
	"net/netip"
	"testing"
)

func TestIsNetwork(t *testing.T) {
	for p, want := range map[string]bool{
		"10.0.0.0/8": true, "192.168.1.0/24": true, "192.0.2.1/32": true, "fd00::/8": true, "2001:db8::/32": true,
		"0.0.0.0/0": false, "0.0.0.0/1": false, "128.0.0.0/1": false, "0.0.0.0/5": false, "::/1": false, "2000::/3": false,
		"169.254.0.0/16": false, "fe80::/64": false, "ff00::/8": false,
	} {
		if got := isNetwork(netip.MustParsePrefix(p)); got != want {
			t.Errorf("%s: %v", p, got)
		}
	}
}
