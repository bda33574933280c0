package engine

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	hostsFile    = "hosts"
	hostnameFile = "hostname"
	resolvFile   = "resolv.conf"
)

// writeEtc writes the files that tell a container its names and addresses, and
// returns their mounts.
func (c *ctr) writeEtc(r *record, box *Sandbox) ([]specs.Mount, error) {
	hosts, err := c.e.hostsText(r, box)
	if err != nil {
		return nil, err
	}
	resolv, err := c.e.resolvText(r, box)
	if err != nil {
		return nil, err
	}
	var list []specs.Mount
	for _, f := range []struct {
		name string
		text []byte
	}{{resolvFile, resolv}, {hostnameFile, []byte(r.Config.Hostname + "\n")}, {hostsFile, hosts}} {
		path := filepath.Join(c.dir, f.name)
		if err := os.WriteFile(path, f.text, 0o644); err != nil {
			return nil, fmt.Errorf("engine: container %s: %w", c.id, err)
		}
		list = append(list, specs.Mount{Destination: "/etc/" + f.name, Type: "bind", Source: path, Options: []string{"rbind", "rprivate"}})
	}
	return list, nil
}

// otherEtc shares the files of the container whose network is shared.
func (c *ctr) otherEtc(other string) []specs.Mount {
	var list []specs.Mount
	for _, name := range []string{resolvFile, hostnameFile, hostsFile} {
		list = append(list, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(c.e.dir, other, name), Options: []string{"rbind", "rprivate"}})
	}
	return list
}

func (e *Engine) hostsText(r *record, box *Sandbox) ([]byte, error) {
	var b bytes.Buffer
	if r.Host.NetworkMode.IsHost() {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		b.Write(own)
		if len(own) > 0 && own[len(own)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, x := range r.Host.ExtraHosts {
		name, addr, ok := strings.Cut(x, ":")
		if n, a, eq := strings.Cut(x, "="); eq && (!ok || len(n) < len(name)) {
			name, addr = n, a
		}
		for _, a := range e.gatewayFor(addr, box) {
			fmt.Fprintf(&b, "%s\t%s\n", a, name)
		}
	}
	names := r.Config.Hostname
	if r.Config.Domainname != "" {
		names = r.Config.Hostname + "." + r.Config.Domainname + " " + r.Config.Hostname
	}
	if names == "" || r.Host.NetworkMode.IsHost() {
		return b.Bytes(), nil
	}
	for _, n := range slices.Sorted(mapsKeys(box.Endpoints)) {
		ep := box.Endpoints[n]
		for _, a := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
			if a.IsValid() {
				fmt.Fprintf(&b, "%s\t%s\n", a, names)
			}
		}
	}
	return b.Bytes(), nil
}

// gatewayFor is the address itself, or those that host-gateway stands for.
func (e *Engine) gatewayFor(addr string, box *Sandbox) []string {
	if addr != "host-gateway" {
		return []string{strings.Trim(addr, "[]")}
	}
	var out []string
	for _, a := range e.cfg.HostGateway {
		out = append(out, a.String())
	}
	if len(out) > 0 {
		return out
	}
	for _, n := range slices.Sorted(mapsKeys(box.Endpoints)) {
		if g := box.Endpoints[n].Gateway; g.IsValid() {
			return []string{g.String()}
		}
	}
	return nil
}

// resolvText is resolv.conf: the host's, with what the container, the network
// and the engine's configuration say instead.
func (e *Engine) resolvText(r *record, box *Sandbox) ([]byte, error) {
	host, err := hostResolv()
	if err != nil {
		return nil, err
	}
	servers, search, options := host.servers, host.search, host.options
	// Servers on the host's loopback can't be reached from another namespace.
	if !r.Host.NetworkMode.IsHost() {
		servers = slices.DeleteFunc(slices.Clone(servers), func(s string) bool {
			a, err := netip.ParseAddr(s)
			return err == nil && a.IsLoopback()
		})
		if len(servers) == 0 {
			servers = []string{"8.8.8.8", "8.8.4.4"} // Docker's choice
		}
	}
	texts := func(list []netip.Addr) []string {
		var out []string
		for _, a := range list {
			out = append(out, a.String())
		}
		return out
	}
	first := func(lists ...[]string) []string {
		for _, l := range lists {
			if len(l) > 0 {
				return l
			}
		}
		return nil
	}
	servers = first(texts(box.DNS), texts(r.Host.DNS), texts(e.cfg.DNS), servers)
	search = first(r.Host.DNSSearch, e.cfg.DNSSearch, search)
	options = first(r.Host.DNSOptions, e.cfg.DNSOptions, options)
	if len(search) == 1 && search[0] == "." {
		search = nil
	}
	var b bytes.Buffer
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes(), nil
}

type resolv struct{ servers, search, options []string }

func hostResolv() (resolv, error) {
	path := "/etc/resolv.conf"
	b, err := os.ReadFile(path)
	if err == nil && bytes.Contains(b, []byte("127.0.0.53")) { // systemd-resolved: it tells the real ones here
		if real, rerr := os.ReadFile("/run/systemd/resolve/resolv.conf"); rerr == nil {
			b = real
		}
	}
	if err != nil && !os.IsNotExist(err) {
		return resolv{}, fmt.Errorf("engine: %w", err)
	}
	return parseResolv(b), nil
}

func parseResolv(b []byte) resolv {
	var r resolv
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
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
