package allocator

import (
	"errors"
	"math"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// State is what addresses are in use. It can be computed from the networks, the
// services and the tasks at any time, and follows their changes. Not safe for
// concurrent use.
type State struct {
	nets    map[string]*subnets
	known   map[string]struct{} // networks, also those that give out nothing
	ingress string              // id of the ingress network; empty: there is none
}

// subnets are a network's.
type subnets struct {
	name     string
	families []family // those that it has, IPv4 first
}

// NewState returns a state without networks. Networks are told to it first,
// then who holds addresses in them, then Resume.
func NewState() *State { return &State{nets: map[string]*subnets{}, known: map[string]struct{}{}} }

// SetNetwork makes a network known. Networks that every node has by itself, and
// those without subnets, have no addresses to give out.
func (s *State) SetNetwork(n *api.Network) {
	s.known[n.ID] = struct{}{}
	if n.Predefined || n.IPAMOptions == nil || s.nets[n.ID] != nil {
		return
	}
	w := &subnets{name: n.Spec.Name}
	var four, six family
	for _, c := range n.IPAMOptions.Configs {
		if !c.Subnet.IsValid() {
			continue
		}
		p := newPool(c.Subnet, c.Range)
		p.claim(c.Gateway)
		for _, a := range n.Reserved {
			p.claim(a)
		}
		if c.Subnet.Addr().Is4() {
			four = append(four, p)
		} else {
			six = append(six, p)
		}
	}
	for _, f := range []family{four, six} {
		if len(f) > 0 {
			w.families = append(w.families, f)
		}
	}
	s.nets[n.ID] = w
	if n.Spec.Ingress {
		s.ingress = n.ID
	}
}

// RemoveNetwork forgets a network and all that was given out in it.
func (s *State) RemoveNetwork(id string) {
	delete(s.known, id)
	delete(s.nets, id)
	if s.ingress == id {
		s.ingress = ""
	}
}

// Resume is called once all that hold addresses are known.
func (s *State) Resume() {
	for _, w := range s.nets {
		for _, f := range w.families {
			for _, p := range f {
				p.resume()
			}
		}
	}
}

// InUse returns how many addresses of a network are given out, gateways and
// reserved ones included.
func (s *State) InUse(network string) (n uint64) {
	if w := s.nets[network]; w != nil {
		for _, f := range w.families {
			n += f.used()
		}
	}
	return n
}

// held are addresses by network.
type held map[string][]netip.Addr

// heldByService are the virtual addresses that a service has; nil has none.
func heldByService(o *api.Service) held {
	if o == nil || len(o.Endpoint.VirtualIPs) == 0 {
		return nil
	}
	h := held{}
	for _, v := range o.Endpoint.VirtualIPs {
		h[v.NetworkID] = append(h[v.NetworkID], v.Addr.Addr())
	}
	return h
}

// heldByTask are the addresses that a task has: until it has ended.
func heldByTask(t *api.Task) held {
	if t == nil || len(t.Networks) == 0 || api.Final(t.Status.State) {
		return nil
	}
	var h held
	for i := range t.Networks {
		for _, a := range t.Networks[i].Addresses {
			if h == nil {
				h = held{}
			}
			h[t.Networks[i].NetworkID] = append(h[t.Networks[i].NetworkID], a.Addr())
		}
	}
	return h
}

// heldByNode are the addresses that a node has in the ingress network.
func heldByNode(n *api.Node) held {
	if n == nil || len(n.Ingress) == 0 {
		return nil
	}
	h := held{}
	for _, p := range n.Ingress {
		h[n.IngressNetwork] = append(h[n.IngressNetwork], p.Addr())
	}
	return h
}

// ChangeService follows a service from one version to the next; nil: there is
// none. It returns the networks in which something became free.
func (s *State) ChangeService(was, is *api.Service) []string {
	return s.change(heldByService(was), heldByService(is))
}

// ChangeTask does so for a task.
func (s *State) ChangeTask(was, is *api.Task) []string {
	return s.change(heldByTask(was), heldByTask(is))
}

// ChangeNode does so for a node.
func (s *State) ChangeNode(was, is *api.Node) []string {
	return s.change(heldByNode(was), heldByNode(is))
}

func (s *State) change(was, is held) (freed []string) {
	for id, addrs := range is {
		for _, a := range addrs {
			s.claim(id, a)
		}
	}
	for id, addrs := range was {
		for _, a := range addrs {
			if !slices.Contains(is[id], a) && s.release(id, a) {
				freed = append(freed, id)
			}
		}
	}
	slices.Sort(freed)
	return slices.Compact(freed)
}

func (s *State) claim(id string, a netip.Addr) {
	if w := s.nets[id]; w != nil {
		if p := w.poolOf(a); p != nil {
			p.claim(a)
		}
	}
}

func (s *State) release(id string, a netip.Addr) bool {
	w := s.nets[id]
	if w == nil {
		return false
	}
	if p := w.poolOf(a); p != nil {
		p.release(a)
	}
	return true
}

// full is the error of a network that has no address left.
type full struct {
	network string // its id
	error
}

func (f *full) Unwrap() error { return f.error }

// fullNetwork returns the id of the network for which there is nothing to do but
// wait; empty if err is another error.
func fullNetwork(err error) string {
	var f *full
	if errors.As(err, &f) {
		return f.network
	}
	return ""
}

// Free returns for how many more there are addresses of each family in a network.
func (s *State) Free(network string) uint64 {
	w := s.nets[network]
	if w == nil || len(w.families) == 0 {
		return 0
	}
	n := uint64(math.MaxUint64)
	for _, f := range w.families {
		n = min(n, f.free())
	}
	return n
}

// take gives out one address of each family, those asked for or the next, or none.
func (s *State) take(id string, asked ...netip.Addr) ([]netip.Prefix, error) {
	w := s.nets[id]
	if w == nil {
		return nil, nil
	}
	var got []netip.Prefix
	for _, f := range w.families {
		i := slices.IndexFunc(asked, func(a netip.Addr) bool { return a.Is4() == f.is4() })
		var a netip.Prefix
		var err error
		if i >= 0 {
			a, err = f.takeThis(asked[i], w.name)
		} else if next, ok := f.take(); ok {
			a = next
		} else {
			err = &full{id, f.exhausted(w.name)}
		}
		if err != nil {
			for _, g := range got {
				s.release(id, g.Addr())
			}
			return nil, err
		}
		got = append(got, a)
	}
	return got, nil
}

// virtualIPs returns a service's virtual addresses: those that it has and needs
// still, and new ones, first that in the ingress network, as Docker has them. What is
// new is counted in.
func (s *State) virtualIPs(o *api.Service) ([]swarm.EndpointVirtualIP, error) {
	if e := o.Spec.EndpointSpec; e != nil && e.Mode == swarm.ResolutionModeDNSRR {
		return nil, nil
	}
	var all, fresh []swarm.EndpointVirtualIP
	ids := s.networksOf(o.Spec.TaskTemplate.Networks, o.Spec.EndpointSpec)
	if i := slices.Index(ids, s.ingress); i > 0 {
		ids = slices.Insert(slices.Delete(ids, i, i+1), 0, s.ingress)
	}
	for _, id := range ids {
		w := s.nets[id]
		if w == nil {
			continue
		}
		i := slices.IndexFunc(o.Endpoint.VirtualIPs, func(v swarm.EndpointVirtualIP) bool { return v.NetworkID == id })
		if i >= 0 {
			for _, v := range o.Endpoint.VirtualIPs {
				if v.NetworkID == id {
					all = append(all, v)
				}
			}
			continue
		}
		addrs, err := s.take(id)
		if err != nil {
			s.giveBack(fresh)
			return nil, err
		}
		for _, a := range addrs {
			v := swarm.EndpointVirtualIP{NetworkID: id, Addr: a}
			all, fresh = append(all, v), append(fresh, v)
		}
	}
	return all, nil
}

func (s *State) giveBack(vips []swarm.EndpointVirtualIP) {
	for _, v := range vips {
		s.release(v.NetworkID, v.Addr.Addr())
	}
}

// networksOf are the ids of the networks of a spec: the ingress network is one,
// last, if something is published by the routing mesh.
func (s *State) networksOf(asked []swarm.NetworkAttachmentConfig, e *swarm.EndpointSpec) []string {
	ids := make([]string, 0, len(asked)+1)
	for i := range asked {
		ids = append(ids, asked[i].Target)
	}
	if s.ingress != "" && api.UsesIngress(e) && !slices.Contains(ids, s.ingress) {
		ids = append(ids, s.ingress)
	}
	return ids
}

// attach gives a task a place in each of its networks.
func (s *State) attach(t *api.Task) ([]api.NetworkAttachment, error) {
	var all []api.NetworkAttachment
	for i, id := range s.networksOf(t.Spec.Networks, t.Spec.Endpoint) {
		a := api.NetworkAttachment{NetworkID: id}
		if i < len(t.Spec.Networks) {
			a.Aliases, a.DriverOpts = t.Spec.Networks[i].Aliases, t.Spec.Networks[i].DriverOpts
		}
		if _, there := s.known[id]; !there {
			s.detach(all)
			return nil, api.Errorf(api.NotFound, "network %s, which the task is to be in, was removed", id)
		}
		var asked []netip.Addr
		if c := t.Spec.Container; c != nil {
			asked = c.Addresses
		}
		var err error
		if a.Addresses, err = s.take(id, asked...); err != nil {
			s.detach(all)
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

func (s *State) detach(all []api.NetworkAttachment) {
	for _, a := range all {
		for _, p := range a.Addresses {
			s.release(a.NetworkID, p.Addr())
		}
	}
}
