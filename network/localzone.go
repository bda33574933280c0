package network

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	// hostResolv says which servers the host asks, rereadHost how often it is
	// looked at for a change.
	hostResolv = "/etc/resolv.conf"
	rereadHost = 2 * time.Second
	dnsPort    = 53
)

// ResolverAddr is where containers in networks with names have their resolver.
func ResolverAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

// named reports whether containers of a network are known by their names in it:
// in all that users and the swarm made, but not where Docker has no names.
func (w *netw) named() bool {
	return !w.plain() && w.Network.Name != dnet.NetworkBridge && !w.Network.Ingress
}

// SetDNS says which servers a container wants to have asked, from its own
// namespace, instead of the host's (--dns). It is for the next Join.
func (n *Networks) SetDNS(id string, servers []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(servers) == 0 {
		delete(n.dns, id)
		return
	}
	if n.dns == nil {
		n.dns = map[string][]netip.Addr{}
	}
	n.dns[id] = slices.Clone(servers)
}

// Rename gives a container that has joined another name in its networks.
func (n *Networks) Rename(ctx context.Context, id, from, to string) error {
	a := n.renamed(id, from, to)
	if a == nil {
		return nil
	}
	return n.realize(ctx, a, true)
}

func (n *Networks) renamed(id, from, to string) *attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.boxes[id]
	if b == nil || n.closed {
		return nil
	}
	a := *b.attachment
	a.Endpoints = slices.Clone(a.Endpoints)
	for i := range a.Endpoints {
		s := a.Endpoints[i].Settings.Copy()
		if k := slices.Index(s.DNSNames, from); k >= 0 && !slices.Contains(s.Aliases, from) {
			s.DNSNames[k] = to
		} else if k >= 0 {
			s.DNSNames = append([]string{to}, s.DNSNames...)
		}
		a.Endpoints[i].Settings = s
	}
	n.install(&a)
	return &a
}

// resolverOf returns how a container's names are resolved; nil if that is not
// our affair. Callers hold mu or are New.
func (n *Networks) resolverOf(a *attachment) *Resolver {
	if !a.Resolves {
		return nil
	}
	r, internal := &Resolver{}, true
	if a.linked() {
		r.Zones = append(r.Zones, linkPrefix+a.ID)
	}
	for _, e := range a.Endpoints {
		w := n.nets[e.NetworkID]
		internal = internal && w.Network.Internal
		if w.named() && !e.Automatic {
			r.Zones = append(r.Zones, e.NetworkID)
		}
	}
	servers := a.DNS
	switch r.Inside = len(servers) > 0; {
	case r.Inside:
	case internal:
		// Asking from the host would be a way out.
		return r
	case len(n.o.DNS) > 0:
		servers = n.o.DNS
	default:
		servers = n.hostServers
	}
	for _, s := range servers {
		if !r.Inside || s != ResolverAddr() {
			r.Servers = append(r.Servers, netip.AddrPortFrom(s, dnsPort))
		}
	}
	return r
}

// needsResolver reports whether endpoints have networks with names.
func (n *Networks) needsResolver(l []endpoint) bool {
	return slices.ContainsFunc(l, func(e endpoint) bool { return !e.Automatic && n.nets[e.NetworkID].named() })
}

// putLocalZones adds the zones of the node's own networks. Callers hold mu.
func (n *Networks) putLocalZones(c *Config) {
	for id, w := range n.nets {
		if w.Overlay != nil || !w.named() || len(w.users) == 0 {
			continue
		}
		if w.zone == nil {
			w.zone = n.localZone(w)
		}
		if len(w.zone.Names) > 0 {
			c.Zones[id] = w.zone
		}
	}
	for _, b := range n.boxes {
		if z := b.linkZone(n.nets, c.Zones); z != nil {
			c.Zones[z.ID] = z
		}
	}
}

// linkPrefix is before the id of a container in that of a zone of its own, with
// the names that it gives to others (--link).
const linkPrefix = "links-of-"

// linked reports whether a container gives others names.
func (a *attachment) linked() bool {
	return slices.ContainsFunc(a.Endpoints, func(e endpoint) bool { return len(e.Settings.Links) > 0 })
}

// linkZone returns the names that a container gives to others of its networks,
// whose zones are given; nil if there are none.
func (a *attachment) linkZone(nets map[string]*netw, zones map[string]*Zone) *Zone {
	if !a.linked() {
		return nil
	}
	own := &Zone{ID: linkPrefix + a.ID, Names: map[string][]netip.Addr{}}
	for _, e := range a.Endpoints {
		w, z := nets[e.NetworkID], zones[e.NetworkID]
		if z == nil || !w.named() {
			continue
		}
		for _, link := range e.Settings.Links {
			target, alias, ok := strings.Cut(link, ":")
			if !ok {
				alias = target
			}
			target = strings.ToLower(strings.TrimPrefix(target, "/"))
			if _, whole := w.users[target]; whole {
				target = target[:min(shortID, len(target))]
			}
			if l, there := z.Names[target]; there {
				own.add(strings.TrimPrefix(alias, "/"), l)
			}
		}
	}
	return own
}

// shortID is how many characters of its id a container is also called by.
const shortID = 12

// localZone returns the names of a network's containers.
func (n *Networks) localZone(w *netw) *Zone {
	z := &Zone{ID: w.Network.ID, Name: w.Network.Name, Names: map[string][]netip.Addr{}, Owners: map[netip.Addr]string{}}
	for id := range w.users {
		for _, e := range n.boxes[id].Endpoints {
			if e.NetworkID == w.Network.ID && !e.Automatic {
				z.addEndpoint(e.Settings)
			}
		}
	}
	for name, l := range z.Names {
		slices.SortFunc(l, netip.Addr.Compare)
		z.Names[name] = slices.Compact(l)
	}
	return z
}

// addEndpoint adds a container's names and addresses.
func (z *Zone) addEndpoint(s *dnet.EndpointSettings) {
	var addrs []netip.Addr
	for _, a := range []netip.Addr{s.IPAddress, s.GlobalIPv6Address} {
		if a.IsValid() {
			addrs = append(addrs, a)
		}
	}
	for i, name := range s.DNSNames {
		z.add(name, addrs)
		if i == 0 && name != "" {
			z.own(name, addrs)
		}
	}
}

// followHost notes which servers the host asks, again and again until ctx ends.
func (n *Networks) followHost(ctx context.Context) {
	t := time.NewTicker(rereadHost)
	defer t.Stop()
	var seen os.FileInfo
	for {
		info, err := os.Stat(n.o.ResolvConf)
		if err == nil && (seen == nil || !info.ModTime().Equal(seen.ModTime()) || info.Size() != seen.Size() || !os.SameFile(info, seen)) {
			seen = info
			n.readHost()
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// readHost notes which servers the host asks, and has containers' queries go to
// those.
func (n *Networks) readHost() {
	text, err := os.ReadFile(n.o.ResolvConf)
	if err != nil && !os.IsNotExist(err) {
		n.log.Warn("network: the host's name servers can't be read; containers keep those of before", "file", n.o.ResolvConf, "error", err)
		return
	}
	servers := nameservers(text)
	n.mu.Lock()
	defer n.mu.Unlock()
	if slices.Equal(servers, n.hostServers) {
		return
	}
	n.hostServers = servers
	for _, b := range n.boxes {
		if b.sandbox == nil {
			continue
		}
		if r := n.resolverOf(b.attachment); !r.Equal(b.sandbox.Resolver) {
			s := *b.sandbox
			s.Resolver = r
			b.sandbox = &s
		}
	}
	n.kick()
}

// maxNameservers bounds how many of a file are heeded.
const maxNameservers = 6

// nameservers reads those of a resolv.conf, see resolv.conf(5).
func nameservers(text []byte) []netip.Addr {
	var l []netip.Addr
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 2 || f[0] != "nameserver" || len(l) == maxNameservers {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && !slices.Contains(l, a) {
			l = append(l, a)
		}
	}
	return l
}

// hostGateway returns the addresses by which a container reaches its host; none
// if it doesn't.
func hostGateway(a *attachment) []netip.Addr {
	var l []netip.Addr
	v4, v6 := gatewayEndpoints(a.Endpoints)
	if v4 != nil {
		l = append(l, v4.Settings.Gateway)
	}
	if v6 != nil {
		l = append(l, v6.Settings.IPv6Gateway)
	}
	return l
}

// validateDNS refuses what no container can ask.
func validateDNS(servers []netip.Addr) error {
	for _, s := range servers {
		if !s.IsValid() || s.IsUnspecified() || s.IsMulticast() {
			return api.Errorf(api.Invalid, "dns %s: must be the address of a name server", s)
		}
	}
	return nil
}
