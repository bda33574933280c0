package engine

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
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
		name, addr := splitHost(x)
		for _, a := range e.gatewayFor(addr, box) {
			fmt.Fprintf(&b, "%s\t%s\n", a, name)
		}
	}
	b.WriteString(e.linkLines(r))
	for _, n := range slices.Sorted(mapsKeys(box.Endpoints)) {
		b.WriteString(ownLines(r, box.Endpoints[n]))
	}
	return b.Bytes(), nil
}

// ownLines are what hosts has for a container itself in a network.
func ownLines(r *record, ep *network.EndpointSettings) string {
	names := r.Config.Hostname
	if r.Config.Domainname != "" {
		names = r.Config.Hostname + "." + r.Config.Domainname + " " + r.Config.Hostname
	}
	if names == "" || r.Host.NetworkMode.IsHost() {
		return ""
	}
	var b strings.Builder
	for _, a := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
		if a.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", a, names)
		}
	}
	return b.String()
}

// noteInHosts has the hosts of a running container tell of a network that it has
// come into, or has left: a line more, or less, whatever else is in it.
func (c *ctr) noteInHosts(r *record, ep *network.EndpointSettings, in bool) {
	lines := ownLines(r, ep)
	if lines == "" {
		return
	}
	path := filepath.Join(c.dir, hostsFile)
	have, err := os.ReadFile(path)
	if err == nil {
		text := strings.Replace("\n"+string(have), "\n"+lines, "\n", 1)[1:]
		if in {
			if text != "" && !strings.HasSuffix(text, "\n") {
				text += "\n"
			}
			text += lines
		}
		err = os.WriteFile(path, []byte(text), 0o644) // in place: the file is mounted
	}
	if err != nil {
		c.e.cfg.Log.Warn("a container's hosts could not be changed", "container", c.id, "error", err)
	}
}

// gatewayFor is the address itself, or those that host-gateway stands for.
func (e *Engine) gatewayFor(addr string, box *Sandbox) []string {
	if addr != hostGateway {
		return []string{strings.Trim(addr, "[]")}
	}
	if len(e.cfg.HostGateway) > 0 {
		return texts(e.cfg.HostGateway)
	}
	return texts(box.HostGateway)
}
