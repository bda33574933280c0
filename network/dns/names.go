package dns

import (
	"bytes"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/legion-swarm/legion/network"
)

// timeToLive of our answers, in seconds. A backend that drains is gone within a
// fraction of one, so nobody may keep an answer.
const timeToLive = 0

// zone is a zone with what lookups need besides.
type zone struct {
	*network.Zone
	suffix string // ".name-of-the-network"
	// sole zones know all names below their network's: what they don't know is
	// nowhere. A network called like a domain of the internet hides nothing.
	sole bool
}

// Names is what a node's servers know. Immutable.
type Names struct{ zones map[string]*zone }

// NewNames returns the names of zones by network id. What it has in common with
// old, which may be nil, is shared.
func NewNames(zones map[string]*network.Zone, old *Names) *Names {
	n := &Names{zones: make(map[string]*zone, len(zones))}
	for id, z := range zones {
		if old != nil && old.zones[id] != nil && old.zones[id].Zone == z {
			n.zones[id] = old.zones[id]
			continue
		}
		name := strings.ToLower(z.Name)
		_, listed := publicsuffix.PublicSuffix(name)
		n.zones[id] = &zone{Zone: z, suffix: "." + name, sole: name != "" && !listed}
	}
	return n
}

// Result is what Names know of a name.
type Result struct {
	// Known: the answer is ours to give. Otherwise others are to be asked.
	Known bool
	// Exists is false for a name of ours that there isn't.
	Exists bool
	// Addresses of both families.
	Addresses []netip.Addr
	// Owner of the address in question, for reverse lookups.
	Owner string
}

// Lookup looks a name up for a sandbox. The name is in lower case and has no
// dot at the end.
func (n *Names) Lookup(zones []string, name []byte, kind Type) Result {
	if kind == TypePTR {
		if a := reversed(name); a.IsValid() {
			return n.owner(zones, a)
		}
	}
	for _, id := range zones {
		if z := n.zones[id]; z != nil {
			if l, ok := z.Names[string(name)]; ok {
				return Result{Known: true, Exists: true, Addresses: l}
			}
		}
	}
	ours := false
	for _, id := range zones {
		z := n.zones[id]
		if z == nil || len(name) <= len(z.suffix) || string(name[len(name)-len(z.suffix):]) != z.suffix {
			continue
		}
		if l, ok := z.Names[string(name[:len(name)-len(z.suffix)])]; ok {
			return Result{Known: true, Exists: true, Addresses: l}
		}
		ours = ours || z.sole
	}
	return Result{Known: ours || n.tasksOf(zones, name)}
}

// tasksPrefix is before a service's name where all its tasks are meant.
const tasksPrefix = "tasks."

// tasksOf reports whether a name asks for the tasks of something known.
func (n *Names) tasksOf(zones []string, name []byte) bool {
	rest, ok := bytes.CutPrefix(name, []byte(tasksPrefix))
	return ok && n.Lookup(zones, rest, TypeA).Exists
}

func (n *Names) owner(zones []string, a netip.Addr) Result {
	for _, id := range zones {
		if z := n.zones[id]; z != nil {
			if o, ok := z.Owners[a]; ok {
				return Result{Known: true, Exists: true, Owner: o}
			}
		}
	}
	return Result{}
}

const (
	reverse4 = ".in-addr.arpa"
	reverse6 = ".ip6.arpa"
)

// reversed returns the address that a name stands for in a reverse lookup, the
// zero address for other names.
func reversed(name []byte) netip.Addr {
	if l, ok := bytes.CutSuffix(name, []byte(reverse4)); ok {
		return reversed4(l)
	}
	if l, ok := bytes.CutSuffix(name, []byte(reverse6)); ok {
		return reversed6(l)
	}
	return netip.Addr{}
}

// reversed4 reads four decimal bytes, the last first.
func reversed4(l []byte) netip.Addr {
	var a [4]byte
	for i := 3; i >= 0; i-- {
		n, digits := 0, 0
		for len(l) > 0 && l[0] >= '0' && l[0] <= '9' && digits < 3 {
			n, digits, l = 10*n+int(l[0]-'0'), digits+1, l[1:]
		}
		if digits == 0 || n > 255 {
			return netip.Addr{}
		}
		a[i] = byte(n)
		if i > 0 {
			if len(l) == 0 || l[0] != '.' {
				return netip.Addr{}
			}
			l = l[1:]
		}
	}
	if len(l) > 0 {
		return netip.Addr{}
	}
	return netip.AddrFrom4(a)
}

// reversed6 reads 32 hexadecimal digits, the last first.
func reversed6(l []byte) netip.Addr {
	var a [16]byte
	if len(l) != 63 {
		return netip.Addr{}
	}
	for i := range 32 {
		d, ok := digit(l[2*i])
		if !ok || i < 31 && l[2*i+1] != '.' {
			return netip.Addr{}
		}
		a[15-i/2] |= d << (4 * (i % 2))
	}
	return netip.AddrFrom16(a)
}

func digit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
