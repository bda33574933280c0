package linux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/legion-swarm/legion/network"
)

// The routing mesh. A connection to a published port of a service is translated
// on the node that it reaches, its source address kept, and goes by a veth pair
// into the ingress network's namespace, over its bridge and tunnel to a task. The
// task's namespace notes which node it came from, by the source's MAC address,
// and sends the answers there. See design/network.md, "Published ports".

const (
	// meshMask are the bits of a packet's and a connection's mark that say, in the
	// host's namespace, that the mesh has it. The rest is others'.
	meshMask = 0x7f000000
	meshBits = 24
	// meshTables is the first of the numbers of routing tables; one an owner.
	meshTables = 19200
	// Preferences of routing rules: by the mark before everything but the host's own
	// addresses, and when nothing else has led anywhere.
	meshRuleFirst, meshRuleLast = 64, 33000
)

// meshNumber tells apart the data planes in one host's namespace: 1 to 127.
func (p *Plane) meshNumber() uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.owner))
	return 1 + h.Sum32()%(meshMask>>meshBits)
}

func (p *Plane) meshMark() uint32 { return p.meshNumber() << meshBits }

// meshDevice is the end of the pair that is in the host's namespace.
func (p *Plane) meshDevice() string {
	if p.owner == defaultOwner {
		return "legion-mesh"
	}
	return "legm-" + p.owner[:min(len(p.owner), 10)]
}

// meshState is what is believed to be there of the mesh. Owned by Set, but for
// rules, which Plane.lists guards.
type meshState struct {
	looked bool                    // what is there was looked at since the start
	device *network.Mesh           // what the device, its routes and settings were made for
	mtu    int                     // of the device
	rules  *meshRules              // contents of the table; nil: none
	host   map[string][]netip.Addr // the host's addresses by device; nil: not known
	boxes  map[string]meshBox
	// led has the addresses that connections may lead to, those of the past
	// included until they are forgotten.
	led map[netip.Addr]bool
}

// check forgets what is believed of what others may have changed.
func (m *meshState) check(p *Plane, changed bool) {
	m.device, m.host = nil, nil
	if changed && m.rules != nil && !p.meshIntact(m.rules) {
		m.rules = nil
		m.looked = false
	}
}

// setMesh makes this node's part in the mesh what the config says, once overlays
// and sandboxes are there.
func (p *Plane) setMesh(ctx context.Context, want, now *network.Config, f *failures) {
	now.Mesh, now.MeshPorts = nil, map[network.MeshKey]*network.MeshPort{}
	m := want.Mesh
	if m == nil {
		f.add(network.MeshItem, p.dropMesh(now))
		return
	}
	o := now.Overlays[m.Overlay]
	if o == nil {
		f.add(network.MeshItem, fmt.Errorf("the ingress network %s is not there", m.Overlay))
		return
	}
	if !want.Rules4 && !want.Rules6 {
		f.add(network.MeshItem, errors.Join(errMeshNeedsRules, p.dropMesh(now)))
		return
	}
	if !want.Forward && p.mesh.device == nil {
		p.warnForwarding(m)
	}
	if err := p.putMeshDevice(m, o); err != nil {
		f.add(network.MeshItem, err)
		return
	}
	p.putMeshBoxes(ctx, m.Overlay, now, f)
	if p.addrsChanged.Swap(false) || p.mesh.host == nil {
		var err error
		if p.mesh.host, err = p.hostAddresses(); err != nil {
			f.add(network.MeshItem, err)
			return
		}
	}
	rules := newMeshRules(p, want, p.mesh.host)
	p.holdMeshPorts(want, rules, now, f)
	now.Mesh = m
	p.lists.Lock()
	have := p.mesh.rules
	rules = rules.narrowed(p.newest)
	err := p.setMeshRules(rules)
	p.lists.Unlock()
	if err == nil {
		p.forgetMeshFlows(have, rules, now)
	}
	f.add(network.MeshItem, err)
}

var errMeshNeedsRules = errors.New("published ports of services need packet filter rules, which --iptables=false forbids: this node answers for none")

// dropMesh removes all of it.
func (p *Plane) dropMesh(now *network.Config) error {
	s := &p.mesh
	if s.looked && s.device == nil && s.rules == nil && len(s.boxes) == 0 {
		return nil
	}
	p.meshSockets.dropAll()
	var errs []error
	p.lists.Lock()
	if err := p.dropMeshTable(); err != nil && s.rules == nil {
		p.log.Warn("network: rules that an earlier run made for published ports may be left", "error", err) // or no nftables here
	} else if err != nil {
		errs = append(errs, err)
	} else {
		s.rules, s.looked = nil, false
	}
	p.lists.Unlock()
	errs = append(errs, p.dropMeshDevice())
	for id, b := range s.boxes {
		if now.Sandboxes[id] != nil {
			errs = append(errs, p.dropMeshBox(b))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	p.lists.Lock()
	p.mesh = meshState{looked: true}
	p.lists.Unlock()
	return nil
}

// putMeshBoxes prepares the sandboxes that are in the ingress network, several
// at a time.
func (p *Plane) putMeshBoxes(ctx context.Context, overlay string, now *network.Config, f *failures) {
	want := map[string]meshBox{}
	for id, s := range now.Sandboxes {
		if b, ok := p.meshBoxOf(s, overlay); ok {
			want[id] = b
		}
	}
	var todo []meshBox
	for id, b := range want {
		if have, ok := p.mesh.boxes[id]; !ok || !have.equal(b) {
			todo = append(todo, b)
			delete(p.mesh.boxes, id)
		}
	}
	for id, b := range p.mesh.boxes {
		if _, stays := want[id]; stays {
			continue
		}
		if now.Sandboxes[id] != nil {
			if err := p.dropMeshBox(b); err != nil {
				p.log.Warn("network: what a container had for published ports can't be removed", "container", id, "error", err)
			}
		}
		delete(p.mesh.boxes, id)
	}
	if p.mesh.boxes == nil {
		p.mesh.boxes = map[string]meshBox{}
	}
	var mu sync.Mutex // guards boxes
	var wg sync.WaitGroup
	next := make(chan meshBox)
	for range min(p.workers, len(todo)) {
		wg.Go(func() {
			for b := range next {
				err := ctx.Err()
				if err == nil {
					err = p.putMeshBox(b)
				}
				if err != nil {
					f.add(network.SandboxItem(b.sandbox), fmt.Errorf("published ports: %w", err))
					continue
				}
				mu.Lock()
				p.mesh.boxes[b.sandbox] = b
				mu.Unlock()
			}
		})
	}
	for _, b := range todo {
		next <- b
	}
	close(next)
	wg.Wait()
}

// holdMeshPorts holds the ports that rules are for, so that no process of the
// host takes one, and takes those out that a process has: its clients stay its.
func (p *Plane) holdMeshPorts(want *network.Config, rules *meshRules, now *network.Config, f *failures) {
	stays := map[network.PortKey]bool{}
	for k, port := range rules.ports {
		for _, a := range port.held(rules.hostAddrs) {
			stays[heldKey(k, a)] = true
		}
	}
	for k := range p.meshSockets.held {
		if !stays[k] {
			p.meshSockets.drop(k)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(rules.ports), compareMeshKeys) {
		port := rules.ports[k]
		if k.Protocol == network.SCTP && !p.tracksSCTP() {
			f.add(network.MeshPortItem(k), errors.New("this kernel can't translate SCTP (CONFIG_NF_CT_PROTO_SCTP): this node does not answer for it"))
			delete(rules.ports, k)
			continue
		}
		relay := want.UserProxy && len(port.four) > 0 && rules.four && !port.restricted()
		if err := p.holdMeshPort(k, port, rules, relay); err != nil {
			for _, a := range port.held(rules.hostAddrs) {
				p.meshSockets.drop(heldKey(k, a))
			}
			f.add(network.MeshPortItem(k), fmt.Errorf("a process of this host has it, and keeps it; other nodes answer: %w", err))
			delete(rules.ports, k)
			continue
		}
		now.MeshPorts[k] = want.MeshPorts[k]
	}
}

// warnForwarding says what does not work where nobody forwards.
func (p *Plane) warnForwarding(m *network.Mesh) {
	for _, a := range m.Addresses {
		path := "/proc/sys/net/ipv4/ip_forward"
		if a.Addr().Is6() {
			path = "/proc/sys/net/ipv6/conf/all/forwarding"
		}
		var now []byte
		_ = p.inHost(func() (err error) { now, err = os.ReadFile(path); return err }) // there is no such family
		if string(bytes.TrimSpace(now)) == "0" {
			p.log.Warn("network: forwarding is off, and --ip-forward=false leaves it so: only this node itself reaches services' published ports here", "file", path)
		}
	}
}

// tracksSCTP reports whether the kernel can translate ports of SCTP.
func (p *Plane) tracksSCTP() bool {
	return p.inHost(func() error {
		_, err := os.Stat("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established")
		return err
	}) == nil
}

// holdMeshPort holds one at all its addresses. What comes by IPv6 and is not
// translated is relayed to the same port by IPv4.
func (p *Plane) holdMeshPort(k network.MeshKey, port *meshRule, rules *meshRules, relay bool) error {
	for _, a := range port.held(rules.hostAddrs) {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), k.Port)
		err := p.meshSockets.hold(&network.Port{PortKey: heldKey(k, a), Target: to}, relay && a.Is6())
		if errors.Is(err, network.ErrPortInUse) {
			if serves, _ := p.listens(k.Protocol, k.Port); !serves && k.Protocol != network.SCTP {
				continue // it is taken by a connection that goes out from it
			}
		}
		if errors.Is(err, network.ErrPortInUse) || err != nil && a.Is4() {
			return fmt.Errorf("%s: %w", netip.AddrPortFrom(a, k.Port), err)
		}
		port.relayed = port.relayed || relay && a.Is6() && err == nil // else the host has no IPv6
	}
	return nil
}

func heldKey(k network.MeshKey, a netip.Addr) network.PortKey {
	return network.PortKey{Protocol: k.Protocol, Host: netip.AddrPortFrom(a, k.Port)}
}

func compareMeshKeys(a, b network.MeshKey) int {
	if c := int(a.Port) - int(b.Port); c != 0 {
		return c
	}
	return compareStrings(string(a.Protocol), string(b.Protocol))
}

func compareStrings(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
