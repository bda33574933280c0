package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// defaultPort is Docker's port for traffic between nodes.
const defaultPort = "2377"

// Docker's sentences.
const (
	badListen    = "listen address must be an IP address or network interface (with optional port number)"
	badAdvertise = "advertise address must be a non-zero IP address or network interface (with optional port number)"
	badDefault   = "default advertise address must be a non-zero IP address or network interface (--swarm-default-advertise-addr)"
	badDataPath  = "data path address must be a non-zero IP address or network interface (without a port number)"
)

// iface is a network interface of the host with its addresses.
type iface struct {
	name  string
	addrs []netip.Addr
}

// hostInterfaces lists the interfaces that are up, loopback aside.
func hostInterfaces() ([]iface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var out []iface
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		f := iface{name: i.Name}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLinkLocalUnicast() {
				f.addrs = append(f.addrs, p.Addr().Unmap())
			}
		}
		out = append(out, f)
	}
	return out, nil
}

// resolveListen turns what --listen-addr says (an address or an interface,
// with an optional port) into host:port. 0.0.0.0 means every address.
func resolveListen(spec string, host []iface) (string, error) {
	name, port, err := splitPort(spec)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%s, not %q: %w", badListen, spec, err)
	}
	addr, err := addressOf(name, host)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%s: %w", badListen, err)
	}
	return net.JoinHostPort(addr.String(), port), nil
}

// checkListen refuses a request that does not say where to listen.
func checkListen(spec string) error {
	if spec == "" {
		return api.Errorf(api.Invalid, "invalid ListenAddr \"\": invalid empty address: 0.0.0.0:%s is every address of this host", defaultPort)
	}
	return nil
}

// resolveAdvertise turns what --advertise-addr says into the host:port that
// other nodes are told. Empty means: fallback (the daemon's
// --swarm-default-advertise-addr), else the listen address if that is a single
// one, else the host's only address.
func resolveAdvertise(spec, fallback, listen string, host []iface) (string, error) {
	listenHost, listenPort, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	bad := badAdvertise
	if spec == "" {
		spec, bad = fallback, badDefault
	}
	if spec == "" {
		if a, err := netip.ParseAddr(listenHost); err == nil && !a.IsUnspecified() {
			return listen, nil
		}
		a, err := onlyAddress(host)
		if err != nil {
			return "", err
		}
		return net.JoinHostPort(a.String(), listenPort), nil
	}
	name, port, err := splitPort(spec)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%s, not %q: %w", bad, spec, err)
	}
	if _, err := netip.ParseAddr(spec); err == nil || !strings.HasSuffix(spec, ":"+port) {
		port = listenPort
	}
	addr, err := addressOf(name, host)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%s: %w", bad, err)
	}
	if addr.IsUnspecified() {
		return "", api.Errorf(api.Invalid, "%s, not %q", bad, spec)
	}
	return net.JoinHostPort(addr.String(), port), nil
}

// splitPort separates an optional port, which must be a number from 1 to 65535. An
// IPv6 address may be in brackets without one, too.
func splitPort(s string) (host, port string, err error) {
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return a.String(), defaultPort, nil
	}
	host, port, ok := strings.Cut(s, ":")
	if strings.HasPrefix(s, "[") || strings.Count(s, ":") > 1 {
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", "", err
		}
	} else if !ok {
		return s, defaultPort, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("%q is not a port number (1 to 65535)", port)
	}
	return host, port, nil
}

// resolveDataPath returns the address that tunnels have, given as an address of the
// host or an interface.
func resolveDataPath(spec string, host []iface) (string, error) {
	a, err := addressOf(spec, host)
	if err == nil && !a.IsLoopback() && !slices.ContainsFunc(host, func(i iface) bool { return slices.Contains(i.addrs, a) }) {
		err = fmt.Errorf("this host has no address %s, and tunnels could not send from it", a)
	}
	if err != nil {
		return "", api.Errorf(api.Invalid, "%s: %w", badDataPath, err)
	}
	return a.String(), nil
}

// addressOf reads an IP address, or takes the only address of an interface;
// IPv4 comes before IPv6.
func addressOf(name string, host []iface) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a, nil
	}
	at := slices.IndexFunc(host, func(i iface) bool { return i.name == name })
	if at < 0 {
		return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor a network interface of this host", name)
	}
	a, many := pick(host[at].addrs)
	if many {
		version := "v6"
		if slices.ContainsFunc(host[at].addrs, netip.Addr.Is4) {
			version = "v4"
		}
		return netip.Addr{}, fmt.Errorf("interface %s has more than one IP%s address (%s): name one of them", name, version, join(host[at].addrs))
	}
	if !a.IsValid() {
		return netip.Addr{}, fmt.Errorf("interface %s has no IP address", name)
	}
	return a, nil
}

// onlyAddress finds the one address that the host can be reached at.
func onlyAddress(host []iface) (netip.Addr, error) {
	var found netip.Addr
	var on string
	for _, i := range host {
		addrs := slices.DeleteFunc(slices.Clone(i.addrs), netip.Addr.IsLoopback)
		if len(addrs) == 0 || virtual(i.name) {
			continue
		}
		a, many := pick(addrs)
		if many {
			return netip.Addr{}, api.Errorf(api.Invalid, "could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s)", i.name, join(addrs))
		}
		if found.IsValid() {
			return netip.Addr{}, api.Errorf(api.Invalid, "could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s)", found, on, a, i.name)
		}
		found, on = a, i.name
	}
	if !found.IsValid() {
		return netip.Addr{}, api.Errorf(api.Invalid, "could not find the system's IP address")
	}
	return found, nil
}

// virtual tells interfaces that engines make for containers.
func virtual(name string) bool {
	for _, p := range []string{"docker", "legion", "br-", "veth", "virbr"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// pick returns the IPv4 address, or else the IPv6 address; many is true when
// there are several of that kind.
func pick(addrs []netip.Addr) (a netip.Addr, many bool) {
	for _, want4 := range []bool{true, false} {
		for _, c := range addrs {
			if c.Is4() != want4 {
				continue
			}
			if a.IsValid() {
				return netip.Addr{}, true
			}
			a = c
		}
		if a.IsValid() {
			return a, false
		}
	}
	return a, false
}

func join(addrs []netip.Addr) string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return strings.Join(s, " and ")
}
