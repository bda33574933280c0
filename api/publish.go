package api

import (
	"fmt"
	"net/netip"
	"strings"
)

// maxDevice is the longest name of a network device.
const maxDevice = 15

// parsePublishOn reads where ports are published: addresses, prefixes and devices
// of nodes, separated by commas.
func parsePublishOn(v string) ([]string, error) {
	var out []string
	for s := range strings.SplitSeq(v, ",") {
		s = strings.TrimSpace(s)
		if _, _, err := PublishPlace(s); err != nil {
			return nil, err
		}
		if len(out) == maxPublishOn {
			return nil, fmt.Errorf("more than %d places", maxPublishOn)
		}
		out = append(out, s)
	}
	return out, nil
}

// PublishPlace reads one place where ports are published: a prefix (an address is
// one of full length), or the name of a device.
func PublishPlace(s string) (on netip.Prefix, device string, err error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), "", nil
	}
	if p, err := netip.ParsePrefix(s); err == nil && !p.Addr().Is4In6() {
		return p.Masked(), "", nil
	}
	numbers := strings.Trim(s, "0123456789.") == ""
	if s == "" || len(s) > maxDevice || numbers || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' || r == ',' }) {
		return on, "", fmt.Errorf("%q is neither an address nor a prefix of addresses nor the name of a device (of 1 to %d characters)", s, maxDevice)
	}
	return on, s, nil
}
