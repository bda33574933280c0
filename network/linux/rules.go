package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	mnl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Priorities of our chains. Translation is where everybody's is; our verdict on
// what may be forwarded comes before that of others.
const (
	priorityRaw     = -300
	priorityDstNAT  = -100
	priorityForward = -10
	prioritySrcNAT  = 100
)

// socketBuffer is what a large transaction takes.
const socketBuffer = 8 << 20

// Names of maps from a published port to its target: on all addresses of the
// host, and on one.
const (
	anyMap  = "ports"
	addrMap = "addr-ports"
	// openSet has ports of containers' own addresses that are reached by routing.
	openSet = "open-ports"
)

// ruleState is what is believed to be in our tables, by family.
type ruleState struct {
	families map[nftables.TableFamily]*ruleset
	cleaned  bool // tables that should not be there were removed
	mesh     bool // there is a device of the routing mesh
	admitted bool // foreign chains were looked at since they last changed
}

// ruleset is the contents of a table.
type ruleset struct {
	bridges []*network.Bridge // with subnets of the family, by name
	ports   map[network.PortKey]netip.AddrPort
	open    map[network.PortKey]bool // at containers' addresses
	relayed bool                     // what is not translated is relayed
	// framed: frames in bridges pass the rules, too, and so datagrams of containers that
	// are kept apart are relayed. False if there are none.
	framed bool
}

// wantedRules returns the contents of a family's table; nil for no table.
func wantedRules(c *network.Config, f nftables.TableFamily) *ruleset {
	v6 := f == nftables.TableFamilyIPv6
	if v6 && !c.Rules6 || !v6 && !c.Rules4 {
		return nil
	}
	r := &ruleset{ports: map[network.PortKey]netip.AddrPort{}, open: map[network.PortKey]bool{}, relayed: c.UserProxy}
	var trusting []netip.Prefix // subnets of bridges that trust devices
	for _, name := range slices.Sorted(maps.Keys(c.Bridges)) {
		b := c.Bridges[name]
		subnets := b.Subnets(v6)
		if len(subnets) > 0 {
			r.bridges = append(r.bridges, b)
		}
		if b.TrustAll || len(b.Trusted) > 0 {
			trusting = append(trusting, subnets...)
		}
	}
	if len(r.bridges) == 0 {
		return nil
	}
	for k, p := range c.Ports {
		if k.Host.Addr().Is6() != v6 || p.Target.Addr().Is6() != v6 {
			continue
		}
		if !p.Open {
			r.ports[k] = p.Target
		}
		if p.Open || slices.ContainsFunc(trusting, func(s netip.Prefix) bool { return s.Contains(p.Target.Addr()) }) {
			r.open[network.PortKey{Protocol: k.Protocol, Host: p.Target}] = true
		}
	}
	return r
}

func (r *ruleset) sameBridges(o *ruleset) bool {
	return r.relayed == o.relayed && r.framed == o.framed && slices.EqualFunc(r.bridges, o.bridges, (*network.Bridge).Equal)
}

// setRules makes the packet filter what the config says. Each family's change
// is one transaction: connections never meet half a table.
func (p *Plane) setRules(c *network.Config) error {
	err := p.setTables(c)
	if err != nil && !c.Rules4 && !c.Rules6 {
		p.log.Warn("network: rules of an earlier run may be left; none are to be made", "error", err)
		return nil
	}
	return err
}

func (p *Plane) setTables(c *network.Config) error {
	if p.rules.families == nil {
		p.rules.families = map[nftables.TableFamily]*ruleset{}
	}
	if p.rules.mesh != (c.Mesh != nil) {
		p.rules.mesh, p.rules.admitted = c.Mesh != nil, false
	}
	var errs []error
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		want, have := wantedRules(c, f), p.rules.families[f]
		if want != nil && want.relaysBridges() {
			want.framed = p.framesPassRules(f)
		}
		if have == nil || want == nil || !have.sameBridges(want) {
			p.rules.admitted = false
		}
		err := p.setFamily(f, have, want)
		if err == nil {
			err = p.forgetFlows(f, have, want)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s packet filter rules (nftables, table %s; --iptables=false does without): %w", familyName(f), p.table, err))
			delete(p.rules.families, f)
			continue
		}
		p.rules.families[f] = want
	}
	p.rules.cleaned = len(errs) == 0 || !c.Rules4 && !c.Rules6
	if !p.rules.admitted {
		var devices []string
		if c.Rules4 || c.Rules6 {
			devices = slices.Sorted(maps.Keys(c.Bridges))
			if c.Mesh != nil {
				devices = append(devices, p.meshDevice())
			}
		}
		if err := p.admit(devices); err != nil {
			errs = append(errs, err)
		}
		p.rules.admitted = len(errs) == 0 || len(devices) == 0
	}
	return errors.Join(errs...)
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyIPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// setFamily changes one family's table.
func (p *Plane) setFamily(f nftables.TableFamily, have, want *ruleset) error {
	switch {
	case want == nil && have == nil && p.rules.cleaned:
		return nil
	case want == nil:
		return p.dropTable(f)
	case have != nil && have.sameBridges(want):
		return p.setPortElements(f, have, want)
	}
	return p.transact(func(c *filterConn) error {
		b := &tableBuilder{c: c, family: f, t: &nftables.Table{Family: f, Name: p.table}}
		c.AddTable(b.t) // so that there is one to delete
		c.DelTable(b.t)
		c.AddTable(b.t)
		return b.fill(want)
	})
}

func (p *Plane) dropTable(f nftables.TableFamily) error {
	return p.transact(func(c *filterConn) error {
		t := &nftables.Table{Family: f, Name: p.table}
		c.AddTable(t)
		c.DelTable(t)
		return nil
	})
}

// setPortElements changes what ports lead where, or are open, and nothing else.
func (p *Plane) setPortElements(f nftables.TableFamily, have, want *ruleset) error {
	if maps.Equal(have.ports, want.ports) && maps.Equal(have.open, want.open) {
		return nil
	}
	return p.transact(func(c *filterConn) error {
		b := &tableBuilder{c: c, family: f, t: &nftables.Table{Family: f, Name: p.table}}
		if err := b.declareMaps(); err != nil {
			return err
		}
		for k, old := range have.ports {
			if want.ports[k] != old {
				if err := c.SetDeleteElements(b.mapFor(k), []nftables.SetElement{b.element(k, old)}); err != nil {
					return err
				}
			}
		}
		for k, target := range want.ports {
			if have.ports[k] != target {
				if err := c.SetAddElements(b.mapFor(k), []nftables.SetElement{b.element(k, target)}); err != nil {
					return err
				}
			}
		}
		return b.changeOpen(have.open, want.open)
	})
}

// connect opens a netlink socket for rules in the host's namespace.
func (p *Plane) connect() (*filterConn, error) { return openFilter(int(p.host.Fd())) }

// transact makes what f builds one transaction, and remembers the generation
// that it led to: the next one, so that what others change at the same time is
// not taken for ours.
func (p *Plane) transact(f func(c *filterConn) error) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	if err := f(c); err != nil {
		return err
	}
	p.gens.turn.Lock()
	defer p.gens.turn.Unlock()
	before, err := p.generation()
	if err != nil {
		return err
	}
	p.gens.add(before + 1) // it is told of before Flush returns
	if err := c.Flush(); err != nil {
		p.gens.add(0)
		return err
	}
	p.gen.Store(before + 1)
	return nil
}

// generations of the rule set that our own last changes led to: what is told of
// them comes late, and is no news. Safe for concurrent use.
type generations struct {
	turn sync.Mutex // held during a change

	mu   sync.Mutex
	last [64]uint32
	n    int
}

// add notes the next one; 0 says that there was none after all.
func (g *generations) add(gen uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gen == 0 {
		g.n--
	}
	i := g.n % len(g.last)
	if g.last[i] = gen; gen != 0 {
		g.n++
	}
}

func (g *generations) has(gen uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.last[:], gen)
}

// generation asks for the number of the rule set, which grows with every change
// by anybody.
func (p *Plane) generation() (uint32, error) { return generationIn(int(p.host.Fd())) }

func generationIn(ns int) (uint32, error) {
	c, err := mnl.Dial(unix.NETLINK_NETFILTER, &mnl.Config{NetNS: ns})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	answer, err := c.Execute(mnl.Message{
		Header: mnl.Header{Type: nftMessages | unix.NFT_MSG_GETGEN, Flags: mnl.Request},
		Data:   make([]byte, 4), // nfgenmsg
	})
	if err != nil || len(answer) == 0 || len(answer[0].Data) < 4 {
		return 0, errors.Join(err, errors.New("ask for the generation of the rule set"))
	}
	d, err := mnl.NewAttributeDecoder(answer[0].Data[4:])
	if err != nil {
		return 0, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() == nftaGenID {
			return d.Uint32(), nil
		}
	}
	return 0, errors.New("the kernel told no generation of the rule set")
}

// check forgets what is believed of tables that are not as we left them, so
// that they are made anew.
func (r *ruleState) check(p *Plane) {
	p.lists.Lock()
	gen, err := p.generation()
	changed := err != nil || gen != p.gen.Load()
	p.mesh.check(p, changed)
	meshed := p.mesh.rules != nil
	p.lists.Unlock()
	if !changed {
		return
	}
	r.cleaned, r.admitted = false, false
	for f, want := range r.families {
		if want != nil && p.intact(f, want) {
			continue
		}
		delete(r.families, f)
	}
	if err == nil && (len(r.families) > 0 || meshed || p.guard.known && p.guard.is != nil) {
		p.gen.Store(gen)
	}
}
