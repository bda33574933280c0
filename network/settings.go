package network

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Options of bridge networks, as Docker names them.
const (
	optBridgeName  = "com.docker.network.bridge.name"
	optMasquerade  = "com.docker.network.bridge.enable_ip_masquerade"
	optICC         = "com.docker.network.bridge.enable_icc"
	optHostIP      = "com.docker.network.bridge.host_binding_ipv4"
	optDefault     = "com.docker.network.bridge.default_bridge"
	optMTU         = "com.docker.network.driver.mtu"
	optIfPrefix    = "com.docker.network.container_iface_prefix"
	optGateway4    = "com.docker.network.bridge.gateway_mode_ipv4"
	optGateway6    = "com.docker.network.bridge.gateway_mode_ipv6"
	optTrusted     = "com.docker.network.bridge.trusted_host_interfaces"
	optInhibit4    = "com.docker.network.bridge.inhibit_ipv4"
	optSource4     = "com.docker.network.host_ipv4"
	optSource6     = "com.docker.network.host_ipv6"
	optEnable4     = "com.docker.network.enable_ipv4"
	optEnable6     = "com.docker.network.enable_ipv6"
	optIfName      = "com.docker.network.endpoint.ifname"
	optSysctls     = "com.docker.network.endpoint.sysctls"
	optionsReserve = "com.docker.network."
)

// settings are a bridge network's options, parsed.
type settings struct {
	device     string // empty: made from the id
	mtu        int    // 0: the default
	masquerade bool
	isolated   bool
	hostIP     netip.Addr // zero: the node's default
	ifPrefix   string

	mode4, mode6     GatewayMode
	inhibit4         bool       // the bridge has no IPv4 address
	trusted          []string   // devices
	source4, source6 netip.Addr // zero: that of the device that leads out
}

// parseSettings reads a bridge network's options. Of those that Docker reserves
// for itself, one that is not served is an error, never ignored.
func parseSettings(options map[string]string) (settings, error) {
	s := settings{masquerade: true, ifPrefix: "eth"}
	for _, k := range slices.Sorted(maps.Keys(options)) {
		if err := s.set(k, options[k]); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *settings) set(k, v string) error {
	bad := func(want string) error {
		return api.Errorf(api.Invalid, "network option %s=%q: must be %s", k, v, want)
	}
	switch k {
	case optBridgeName:
		if s.device = v; v != "" && !validDevice(v) {
			return bad("a device name of 1 to 15 characters")
		}
	case optMTU:
		n, err := strconv.Atoi(v)
		if s.mtu = n; err != nil || n != 0 && (n < minMTU || n > maxMTU) {
			return bad("a number of bytes from 68 to 65535")
		}
	case optMasquerade, optICC, optDefault, optInhibit4, optEnable4, optEnable6:
		on, err := strconv.ParseBool(v)
		if err != nil {
			return bad("true or false")
		}
		switch k {
		case optMasquerade:
			s.masquerade = on
		case optICC:
			s.isolated = !on
		case optInhibit4:
			s.inhibit4 = on
		}
	case optHostIP:
		a, err := netip.ParseAddr(v)
		if s.hostIP = a.Unmap(); err != nil || a.Zone() != "" {
			return bad("an IP address")
		}
	case optIfPrefix:
		if s.ifPrefix = v; !validDevice(v) || len(v) > maxDeviceName-4 {
			return bad("a device name prefix of 1 to 11 characters")
		}
	case optGateway4, optGateway6, optTrusted, optSource4, optSource6:
		return s.setGateway(k, v, bad)
	default:
		if strings.HasPrefix(k, optionsReserve) {
			return api.Errorf(api.Invalid, "network option %s is not served", k)
		}
	}
	return nil
}

// setGateway reads the options on what is let in and out.
func (s *settings) setGateway(k, v string, bad func(want string) error) error {
	var ok bool
	switch k {
	case optGateway4, optGateway6:
		mode := &s.mode4
		if k == optGateway6 {
			mode = &s.mode6
		}
		if *mode, ok = parseGatewayMode(v); !ok {
			return bad("one of the gateway modes nat, nat-unprotected, routed and isolated")
		}
	case optTrusted:
		if s.trusted, ok = parseDevices(v); !ok {
			return bad("names of the host's devices, with a colon between each two")
		}
	case optSource4:
		a, err := netip.ParseAddr(v)
		if s.source4 = a.Unmap(); err != nil || !s.source4.Is4() || s.source4.IsUnspecified() {
			return bad("an IPv4 address of this host")
		}
	case optSource6:
		a, err := netip.ParseAddr(v)
		if s.source6 = a; err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() {
			return bad("an IPv6 address of this host")
		}
	}
	return nil
}

// parseEndpointOptions reads an endpoint's driver options.
func parseEndpointOptions(options map[string]string) (ifName string, sysctls []string, err error) {
	for _, k := range slices.Sorted(maps.Keys(options)) {
		v := options[k]
		switch {
		case k == optIfName:
			if ifName = v; !validDevice(v) {
				return "", nil, api.Errorf(api.Invalid, "endpoint option %s=%q: must be a device name of 1 to 15 characters", k, v)
			}
		case k == optSysctls:
			for y := range strings.SplitSeq(v, ",") {
				if !validSysctl(y) {
					return "", nil, api.Errorf(api.Invalid, "endpoint option %s: %q is not of the form net.ipv4.conf.IFNAME.name=value", k, y)
				}
				sysctls = append(sysctls, y)
			}
		case strings.HasPrefix(k, optionsReserve):
			return "", nil, api.Errorf(api.Invalid, "endpoint option %s is not served", k)
		}
	}
	return ifName, sysctls, nil
}

// validSysctl accepts an assignment to a setting of the interface itself.
func validSysctl(s string) bool {
	k, v, ok := strings.Cut(s, "=")
	parts := strings.Split(k, ".")
	return ok && v != "" && len(parts) == 5 && parts[0] == "net" && parts[3] == "IFNAME" &&
		slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) && slices.Contains([]string{"conf", "neigh"}, parts[2]) &&
		parts[4] != "" && !strings.ContainsAny(k, "/\x00")
}

// addresses returns the subnets and gateways of a network's family.
func addressing(n *dnet.Network, ipv6 bool) []dnet.IPAMConfig {
	var l []dnet.IPAMConfig
	for _, c := range n.IPAM.Config {
		if c.Subnet.IsValid() && c.Subnet.Addr().Is6() == ipv6 {
			l = append(l, c)
		}
	}
	return l
}
