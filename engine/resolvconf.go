package engine

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

const (
	// hostResolvFile says what the host's programs ask, resolvedFile the servers
	// behind systemd-resolved, which only the host itself can ask.
	hostResolvFile = "/etc/resolv.conf"
	resolvedFile   = "/run/systemd/resolve/resolv.conf"
	resolvedAddr   = "127.0.0.53"
	// ndots0 has single names asked as they are first: those of services and
	// containers are. Docker does the same.
	ndots0 = "ndots:0"
	// hostGateway as an extra host's address stands for where the container
	// reaches its host.
	hostGateway = "host-gateway"
)

// resolv is what a resolv.conf says.
type resolv struct{ servers, search, options []string }

// parseResolv reads a resolv.conf, see resolv.conf(5).
func parseResolv(b []byte) resolv {
	var r resolv
	for line := range bytes.Lines(b) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search", "domain":
			r.search = f[1:]
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// hostResolv returns the host's; real has the servers that others than the host
// itself can ask.
func hostResolv() (host, real resolv, err error) {
	b, err := os.ReadFile(hostResolvFile)
	if err != nil && !os.IsNotExist(err) {
		return host, real, fmt.Errorf("engine: %w", err)
	}
	host = parseResolv(b)
	real = host
	if slices.Contains(host.servers, resolvedAddr) {
		if b, err := os.ReadFile(resolvedFile); err == nil {
			real = parseResolv(b)
		}
	}
	return host, real, nil
}

// resolvText is a container's resolv.conf.
func (e *Engine) resolvText(r *record, box *Sandbox) ([]byte, error) {
	host, real, err := hostResolv()
	if err != nil {
		return nil, err
	}
	return e.resolvConf(r, box, host, real).text(), nil
}

// resolvConf decides what is in a container's, given the host's.
func (e *Engine) resolvConf(r *record, box *Sandbox, host, real resolv) resolvConf {
	if len(box.DNS) > 0 {
		return e.embedded(r, box, host)
	}
	// Servers on the host's loopback can't be reached from another namespace.
	servers := real.servers
	if r.Host.NetworkMode.IsHost() {
		servers = host.servers
	} else {
		servers = slices.DeleteFunc(slices.Clone(servers), isLoopback)
		if len(servers) == 0 {
			servers = []string{"8.8.8.8", "8.8.4.4"} // Docker's choice
		}
	}
	c := resolvConf{resolv: e.overridden(r, real)}
	c.servers = first(texts(r.Host.DNS), texts(e.cfg.DNS), servers)
	return c
}

// resolvConf is a resolv.conf with a remark at its end.
type resolvConf struct {
	resolv
	remark string
}

// embedded is for a container that has its own resolver, which is the only
// server that it asks; the remark says whom that asks for other names.
func (e *Engine) embedded(r *record, box *Sandbox, host resolv) resolvConf {
	c := resolvConf{resolv: e.overridden(r, host)}
	c.servers = texts(box.DNS)
	if !slices.ContainsFunc(c.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		c.options = append(slices.Clone(c.options), ndots0)
	}
	others := texts(r.Host.DNS)
	if len(others) == 0 {
		for _, s := range first(texts(e.cfg.DNS), host.servers) {
			others = append(others, "host("+s+")")
		}
	}
	c.remark = "# Names of the container's networks are answered by its own resolver, which asks these for others:\n# ExtServers: [" + strings.Join(others, " ") + "]\n"
	return c
}

// overridden is the host's search list and options, or what the container or
// the daemon says instead.
func (e *Engine) overridden(r *record, host resolv) resolv {
	c := resolv{search: first(r.Host.DNSSearch, e.cfg.DNSSearch, host.search), options: first(r.Host.DNSOptions, e.cfg.DNSOptions, host.options)}
	if len(c.search) == 1 && c.search[0] == "." {
		c.search = nil
	}
	return c
}

func (c resolvConf) text() []byte {
	var b bytes.Buffer
	for _, s := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	b.WriteString(c.remark)
	return b.Bytes()
}

func isLoopback(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && a.IsLoopback()
}

func texts(list []netip.Addr) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	return out
}

// first returns the first list that is not empty.
func first(lists ...[]string) []string {
	for _, l := range lists {
		if len(l) > 0 {
			return l
		}
	}
	return nil
}

// embedResolver has a running container that has come into its first network
// with names ask its own resolver, unless somebody else has written its
// resolv.conf since.
func (c *ctr) embedResolver(r *record) error {
	path := filepath.Join(c.dir, resolvFile)
	have, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	plain, err := c.e.resolvText(r, &Sandbox{})
	if err != nil || !bytes.Equal(have, plain) {
		return err
	}
	own := netip.AddrFrom4([4]byte{127, 0, 0, 11})
	text, err := c.e.resolvText(r, &Sandbox{DNS: []netip.Addr{own}})
	if err != nil {
		return err
	}
	// In place: the file is mounted.
	return os.WriteFile(path, text, 0o644)
}

// splitHost splits an extra host: NAME:ADDRESS or NAME=ADDRESS.
func splitHost(x string) (name, addr string) {
	i := strings.IndexAny(x, ":=")
	if i < 0 {
		return x, ""
	}
	return x[:i], x[i+1:]
}

// validateNames refuses what can't be in hosts and resolv.conf.
func validateNames(h *container.HostConfig) error {
	for _, x := range h.ExtraHosts {
		name, addr := splitHost(x)
		if name == "" || strings.ContainsFunc(name, notText) || addr != hostGateway && !validAddr(addr) {
			return api.Errorf(api.Invalid, "bad format for add-host: %q", x)
		}
	}
	for _, a := range h.DNS {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return api.Errorf(api.Invalid, "dns %s is not the address of a name server", a)
		}
	}
	for _, l := range []struct {
		what  string
		words []string
	}{{"dns search domain", h.DNSSearch}, {"dns option", h.DNSOptions}} {
		for _, w := range l.words {
			if w == "" || strings.ContainsFunc(w, notText) {
				return api.Errorf(api.Invalid, "%s %q is empty or has spaces or control characters", l.what, w)
			}
		}
	}
	return nil
}

// notText reports what ends a word in these files.
func notText(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '#' }
