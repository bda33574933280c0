package network

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/legion-swarm/legion/api"
)

const (
	// toldDir is where it is kept what managers said of networks, a file each, and
	// nodeDir what they said of this node, below Options.RuntimeDir.
	toldDir = "told"
	nodeDir = "node"
	// nodeRecordName is the only file in nodeDir.
	nodeRecordName = "node"
	// saveGap is how long changes are gathered after some were written.
	saveGap = 500 * time.Millisecond
	// MaxTold bounds the endpoints and services that are known of, all networks
	// together, each name and port counted as one more.
	MaxTold = 1 << 20
)

// told is what managers have said of an overlay. Guarded by Networks.mu; what its
// maps point to is never changed.
type told struct {
	endpoints map[string]*api.OverlayEndpoint
	services  map[string]*api.OverlayService
	// fresh is set once it was said since the start; until then it is what an
	// earlier daemon had heard.
	fresh   bool
	unsaved bool
}

// toldRecord is how it is kept.
type toldRecord struct {
	ID        string
	Endpoints []*api.OverlayEndpoint `json:",omitempty"`
	Services  []*api.OverlayService  `json:",omitempty"`
}

// meshState is this node's place in the ingress network. The zero value: none.
type meshState struct {
	network string
	own     []netip.Prefix
}

// nodeRecord is what is kept of what managers said of this node itself.
type nodeRecord struct {
	Name     string // nodeRecordName
	Underlay Underlay
	Keys     Keys
	Ingress  string         `json:",omitempty"`
	Own      []netip.Prefix `json:",omitempty"`
}

func (n *Networks) toldDir() string { return filepath.Join(n.o.RuntimeDir, toldDir) }
func (n *Networks) nodeDir() string { return filepath.Join(n.o.RuntimeDir, nodeDir) }

// Told takes what managers say of the overlays that this node has a part in, and
// by which address other nodes reach it. What is said stays until something else
// is said, also over restarts. It may be said before the network is known, since a
// task is heard of by all at the same time. The update is the callee's from then on.
func (n *Networks) Told(local netip.Addr, u *api.OverlayUpdate) {
	n.mu.Lock()
	before := n.node()
	if u.DataPort != 0 {
		n.underlay = Underlay{Local: local, Port: u.DataPort}
	}
	if u.Keys != nil {
		n.keys = keysFrom(u.Keys)
	}
	refused := 0
	for i := range u.Networks {
		refused += n.hear(&u.Networks[i])
	}
	if u.Complete {
		n.hearOnly(u.Networks)
	}
	n.nodeUnsaved = n.nodeUnsaved || !before.equal(n.node())
	n.mu.Unlock()
	n.writeFiles()
	if refused > 0 {
		n.log.Error("network: managers tell of more endpoints and services than this node can take; some are not reached from here", "left out", refused, "most", MaxTold)
	}
	n.kick()
}

// Applied returns when no container here is sent any more to what Told has taken out
// before the call, and neither is who comes to a port of the mesh.
func (n *Networks) Applied(ctx context.Context) error { return n.set.takeBack(ctx, n.config) }

// hear takes what is said of one network. It returns how much was too much.
// Callers hold mu.
func (n *Networks) hear(u *api.NetworkUpdate) (refused int) {
	if u.Gone {
		n.unhear(u.ID)
		return 0
	}
	t := n.told[u.ID]
	if t == nil {
		t = &told{endpoints: map[string]*api.OverlayEndpoint{}, services: map[string]*api.OverlayService{}}
		n.told[u.ID] = t
	}
	if u.Whole {
		n.heard -= t.weight()
		clear(t.endpoints)
		clear(t.services)
	}
	t.fresh, t.unsaved = true, true
	for _, id := range u.Remove {
		n.heard -= weight(t.endpoints[id])
		delete(t.endpoints, id)
	}
	for _, id := range u.RemoveServices {
		n.heard -= serviceWeight(t.services[id])
		delete(t.services, id)
	}
	for i := range u.Put {
		e := &u.Put[i]
		if more := weight(e) - weight(t.endpoints[e.ID]); n.heard+more > MaxTold {
			refused++
		} else {
			t.endpoints[e.ID] = e
			n.heard += more
		}
	}
	for i := range u.PutServices {
		s := &u.PutServices[i]
		if more := serviceWeight(s) - serviceWeight(t.services[s.ID]); n.heard+more > MaxTold {
			refused++
		} else {
			t.services[s.ID] = s
			n.heard += more
		}
	}
	if u.Ingress != nil {
		n.joinMesh(u.Ingress, u.Own)
	}
	n.outdate(u.ID)
	return refused
}

// unhear forgets what was said of a network. Callers hold mu, and write the files
// then.
func (n *Networks) unhear(id string) {
	t := n.told[id]
	if t == nil {
		return
	}
	n.heard -= t.weight()
	delete(n.told, id)
	if n.mesh.network == id {
		n.leaveMesh()
	}
	n.outdate(id)
	n.files.want(n.toldDir(), id, nil)
}

// hearOnly forgets all other networks. Callers hold mu.
func (n *Networks) hearOnly(named []api.NetworkUpdate) {
	keep := map[string]bool{}
	for i := range named {
		keep[named[i].ID] = true
	}
	for id := range n.told {
		if !keep[id] {
			n.unhear(id)
		}
	}
}

// ForgetSwarm forgets all that managers have said, as the node leaves its swarm.
func (n *Networks) ForgetSwarm() {
	n.mu.Lock()
	n.hearOnly(nil)
	n.underlay, n.keys = Underlay{}, Keys{}
	n.files.want(n.nodeDir(), nodeRecordName, nil)
	n.mu.Unlock()
	n.writeFiles()
	n.kick()
}

// joinMesh takes this node's place in the ingress network. Callers hold mu.
func (n *Networks) joinMesh(o *api.Network, own []netip.Prefix) {
	if n.mesh.network != o.ID {
		n.leaveMesh()
		if _, err := n.holdLocked(o); err != nil {
			n.log.Error("network: this node has no part in the routing mesh", "error", err)
			return
		}
		n.mesh.network, n.gatewayWanted = o.ID, true
	}
	n.mesh.own = own
}

// leaveMesh gives it up. Callers hold mu.
func (n *Networks) leaveMesh() {
	if w := n.nets[n.mesh.network]; w != nil {
		w.holds--
		w.services = nil
	}
	n.mesh = meshState{}
	n.forgetOverlays()
}

// publishes reports whether this node answers for ports of services. Callers hold
// mu.
func (n *Networks) publishes() bool {
	t := n.told[n.mesh.network]
	return t != nil && len(n.mesh.own) > 0 && len(t.services) > 0
}

// outdate has what follows from a network be made anew. Callers hold mu.
func (n *Networks) outdate(id string) {
	if w := n.nets[id]; w != nil {
		w.services = nil
	}
}

func (t *told) weight() int {
	sum := 0
	for _, e := range t.endpoints {
		sum += weight(e)
	}
	for _, s := range t.services {
		sum += serviceWeight(s)
	}
	return sum
}

func weight(e *api.OverlayEndpoint) int {
	if e == nil {
		return 0
	}
	return 1 + len(e.Aliases)
}

func serviceWeight(s *api.OverlayService) int {
	if s == nil {
		return 0
	}
	sum := 1 + len(s.Aliases) + len(s.Ports)
	for i := range s.Ports {
		sum += len(s.Ports[i].On)
	}
	return sum
}

func keysFrom(k *api.OverlayKeys) Keys {
	out := Keys{Send: k.Send}
	for _, x := range k.Keys {
		out.All = append(out.All, Key(x))
	}
	slices.SortFunc(out.All, func(a, b Key) int { return cmp.Compare(a.ID, b.ID) })
	out.All = slices.CompactFunc(out.All, func(a, b Key) bool { return a.ID == b.ID })
	if (&Config{Keys: out}).validateKeys() != nil {
		return Keys{} // then encrypted networks let nothing pass
	}
	return out
}

// node is what is to be kept of this node. Callers hold mu.
func (n *Networks) node() nodeRecord {
	return nodeRecord{Name: nodeRecordName, Underlay: n.underlay, Keys: n.keys, Ingress: n.mesh.network, Own: n.mesh.own}
}

func (r nodeRecord) equal(o nodeRecord) bool {
	return r.Underlay == o.Underlay && r.Keys.Send == o.Keys.Send && slices.Equal(r.Keys.All, o.Keys.All) && r.Ingress == o.Ingress && slices.Equal(r.Own, o.Own)
}

// loadTold reads what an earlier daemon was told.
func (n *Networks) loadTold() error {
	bad := func(path string, err error) {
		n.log.Error("network: what managers said can't be read; it is said again when one answers", "file", path, "error", err)
	}
	nodes, err := loadAll(n.nodeDir(), func(r *nodeRecord) string { return r.Name }, bad)
	if err != nil {
		return err
	}
	if r := nodes[nodeRecordName]; r != nil {
		n.underlay = r.Underlay
		if (&Config{Keys: r.Keys}).validateKeys() == nil {
			n.keys = r.Keys
		}
		if w := n.nets[r.Ingress]; w != nil && w.Overlay != nil {
			w.holds++
			n.mesh = meshState{r.Ingress, r.Own}
		}
	}
	records, err := loadAll(n.toldDir(), func(r *toldRecord) string { return r.ID }, bad)
	for id, r := range records {
		t := &told{endpoints: map[string]*api.OverlayEndpoint{}, services: map[string]*api.OverlayService{}}
		for _, e := range r.Endpoints {
			if e != nil {
				t.endpoints[e.ID] = e
			}
		}
		for _, s := range r.Services {
			if s != nil {
				t.services[s.ID] = s
			}
		}
		n.told[id] = t
		n.heard += t.weight()
	}
	return err
}

// saveTold writes down what was said since the last time. It reports whether
// there was anything.
func (n *Networks) saveTold() bool {
	n.mu.Lock()
	saved := n.nodeUnsaved
	if n.nodeUnsaved {
		node := n.node()
		n.files.want(n.nodeDir(), nodeRecordName, &node)
	}
	n.nodeUnsaved = false
	for id, t := range n.told {
		if t.unsaved {
			t.unsaved, saved = false, true
			n.files.want(n.toldDir(), id, &toldRecord{ID: id, Endpoints: slices.Collect(maps.Values(t.endpoints)), Services: slices.Collect(maps.Values(t.services))})
		}
	}
	n.mu.Unlock()
	n.writeFiles()
	return saved
}

// removeTold removes the folders of what was told, if nothing is in them.
func (n *Networks) removeTold() error {
	if _, err := os.Stat(n.o.RuntimeDir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(removeEmpty(n.toldDir()), removeEmpty(n.nodeDir()), removeEmpty(n.tasksDir()))
}
