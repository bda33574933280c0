package network

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// Joined is what a container was given.
type Joined struct {
	// Path of the container's namespace; empty: it shares the host's.
	Path string
	// Endpoints by network name, filled in.
	Endpoints map[string]*dnet.EndpointSettings
	// Ports as they are published.
	Ports dnet.PortMap
	// DNS servers for resolv.conf; empty: the host's.
	DNS []netip.Addr
	// HostGateway is where the container reaches its host; empty: nowhere.
	HostGateway []netip.Addr
}

// maxPortTries bounds how often other host ports are chosen because processes
// of the host have those that were.
const maxPortTries = 100

// Join makes a container's namespace with an interface in each network, by
// name or id, and publishes its ports. If the container already has just that,
// it keeps it. The container's name comes first in an endpoint's DNSNames.
// MacAddress is one that the user asked for; IPAddress and GlobalIPv6Address are those
// that the container had last, and gets again if they are free. On error nothing is left.
//
// A network that is not this node's may be one of the swarm's, if that is
// attachable: managers then give the container its place there, see Swarm.
//
// Errors: Invalid, NotFound (a network), Conflict (a port is taken),
// PermissionDenied (an address is; a network is not attachable), ResourceExhausted
// (a subnet is used up), Unavailable (no manager answers).
func (n *Networks) Join(ctx context.Context, id string, endpoints map[string]*dnet.EndpointSettings, ports dnet.PortMap) (*Joined, error) {
	if !validContainerID(id) {
		return nil, api.Errorf(api.Invalid, "container id %q can't name a namespace", id)
	}
	defer n.SetDNS(id, nil)
	endpoints, settle, err := n.fromSwarm(ctx, id, endpoints)
	if err != nil {
		return nil, err
	}
	defer settle()
	if n.needsGateway(endpoints) {
		if err := n.makeGateway(ctx); err != nil {
			return nil, err
		}
	}
	avoid := map[PortKey]bool{}
	for {
		a, fresh, err := n.admit(id, endpoints, ports, avoid)
		if errors.Is(err, errOther) {
			if err = n.Leave(ctx, id); err == nil {
				a, fresh, err = n.admit(id, endpoints, ports, avoid)
			}
		}
		if err != nil {
			return nil, err
		}
		err = n.realize(ctx, a, fresh)
		if err == nil {
			return n.joined(a), nil
		}
		if fresh {
			_ = n.Leave(context.WithoutCancel(ctx), id) // always nil
		}
		var again bool
		if again, err = portsTaken(err, a, avoid); !again || len(avoid) > maxPortTries {
			return nil, err
		}
	}
}

// errOther: the container has a network other than the one asked for.
var errOther = errors.New("network: the container is attached otherwise")

// portsTaken notes which ports processes of the host have. It reports whether
// to choose again, and the error if not.
func portsTaken(err error, a *attachment, avoid map[PortKey]bool) (again bool, _ error) {
	var se *SetError
	if !errors.As(err, &se) {
		return false, err
	}
	for _, p := range a.Published {
		if errors.Is(se.Items[PortItem(p.PortKey)], ErrPortInUse) && !avoid[p.PortKey] {
			avoid[p.PortKey], again = true, true
		}
	}
	return again, err
}

func validContainerID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_' {
			return false
		}
	}
	return true
}

// admit takes addresses and ports for a container. It returns what the
// container has if that is what is asked for.
func (n *Networks) admit(id string, asked map[string]*dnet.EndpointSettings, ports dnet.PortMap, avoid map[PortKey]bool) (a *attachment, fresh bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, false, errClosed
	}
	wanted, err := n.resolve(asked)
	if err != nil {
		return nil, false, err
	}
	if old := n.boxes[id]; old != nil {
		if old.same(wanted, ports) {
			return old.attachment, false, nil
		}
		return nil, false, errOther
	}
	a = &attachment{ID: id, Asked: maps.Clone(ports), DNS: n.dns[id]}
	if err := n.attach(a, wanted, avoid); err != nil {
		n.release(a.Endpoints)
		return nil, false, err
	}
	n.install(a)
	return a, true, nil
}

// attach fills in an attachment's endpoints and ports.
func (n *Networks) attach(a *attachment, wanted map[*netw]*dnet.EndpointSettings, avoid map[PortKey]bool) (err error) {
	for w, s := range wanted {
		e, err := n.newEndpoint(a.ID, w, s)
		if err != nil {
			return err
		}
		a.Endpoints = append(a.Endpoints, e)
	}
	if a.Endpoints, err = n.addGateway(a.Endpoints); err != nil {
		return err
	}
	if err := n.checkOverlap(a.Endpoints); err != nil {
		return err
	}
	n.sortEndpoints(a.Endpoints)
	if err := n.nameInterfaces(a.Endpoints); err != nil {
		return err
	}
	a.Resolves = n.needsResolver(a.Endpoints)
	a.Published, err = n.publish(a.ID, a.Asked, n.targetsOf(a.Endpoints), avoid, nil)
	return err
}

// resolve finds the networks and refuses combinations that can't be.
func (n *Networks) resolve(asked map[string]*dnet.EndpointSettings) (map[*netw]*dnet.EndpointSettings, error) {
	if len(asked) > maxEndpoints {
		return nil, api.Errorf(api.Invalid, "a container can't be in more than %d networks", maxEndpoints)
	}
	wanted := make(map[*netw]*dnet.EndpointSettings, len(asked))
	for name, s := range asked {
		w, err := n.lookup(name)
		if err != nil {
			return nil, err
		}
		if _, twice := wanted[w]; twice {
			return nil, api.Errorf(api.Invalid, "network %s is named twice", w.Network.Name)
		}
		if w.plain() && len(asked) > 1 {
			return nil, api.Errorf(api.Invalid, "container cannot be connected to multiple networks with one of the networks in %s mode", w.Network.Name)
		}
		wanted[w] = s
	}
	return wanted, nil
}

// same reports whether a container has what is asked for.
func (b *box) same(wanted map[*netw]*dnet.EndpointSettings, ports dnet.PortMap) bool {
	if len(wanted) != len(b.shown()) || !maps.EqualFunc(b.Asked, ports, slices.Equal[[]dnet.PortBinding]) {
		return false
	}
	for w, s := range wanted {
		i := slices.IndexFunc(b.Endpoints, func(e endpoint) bool { return e.NetworkID == w.Network.ID })
		if i < 0 || !sameRequest(b.Endpoints[i].Settings, s) {
			return false
		}
	}
	return true
}

// shown are the endpoints that were asked for.
func (a *attachment) shown() []endpoint {
	return slices.DeleteFunc(slices.Clone(a.Endpoints), func(e endpoint) bool { return e.Automatic })
}

// sameRequest reports whether an endpoint is what is asked for.
func sameRequest(has, asked *dnet.EndpointSettings) bool {
	if asked == nil {
		return true
	}
	if c := asked.IPAMConfig; c != nil && (c.IPv4Address.IsValid() && c.IPv4Address != has.IPAddress ||
		c.IPv6Address.IsValid() && c.IPv6Address != has.GlobalIPv6Address) {
		return false
	}
	return has.GwPriority == asked.GwPriority && maps.Equal(has.DriverOpts, asked.DriverOpts) &&
		(len(asked.MacAddress) == 0 || asked.EndpointID != "" || slices.Equal(has.MacAddress, asked.MacAddress))
}

// wantAttachment has an attachment written down that is installed; nil: another one
// is by now, or none.
func (n *Networks) wantAttachment(a *attachment) *wish {
	n.mu.Lock()
	defer n.mu.Unlock()
	if b := n.boxes[a.ID]; b == nil || b.attachment != a {
		return nil
	}
	return n.files.want(n.o.RuntimeDir, a.ID, a)
}

// realize writes an attachment down and has the data plane make it.
func (n *Networks) realize(ctx context.Context, a *attachment, write bool) error {
	if write {
		w := n.wantAttachment(a)
		n.writeFiles(w)
		if w != nil && w.err != nil {
			return api.Errorf(api.Internal, "container %s: write its endpoints: %w", a.ID, w.err)
		}
	}
	err := n.set.commit(ctx, n.config)
	if err == nil || itemsFailed(err, n.itemsOf(a)...) == nil {
		return nil
	}
	return n.explain(a, err)
}

// itemsOf lists all that an attachment depends on.
func (n *Networks) itemsOf(a *attachment) []Item {
	n.mu.Lock()
	defer n.mu.Unlock()
	items := []Item{SandboxItem(a.ID)}
	for _, e := range a.Endpoints {
		switch w := n.nets[e.NetworkID]; {
		case w == nil:
		case w.Overlay != nil: // its tunnel is made when it can be
			items = append(items, OverlayItem(w.Network.ID))
		case w.Device != "":
			items = append(items, BridgeItem(w.Device), RulesItem)
		}
	}
	for _, p := range a.Published {
		items = append(items, PortItem(p.PortKey))
	}
	return items
}

// explain turns the data plane's error into one about the container.
func (n *Networks) explain(a *attachment, err error) error {
	var se *SetError
	if !errors.As(err, &se) {
		return api.Errorf(api.Unavailable, "container %s: set up its network: %w", a.ID, err)
	}
	for _, p := range a.Published {
		e := se.Items[PortItem(p.PortKey)]
		switch {
		case errors.Is(e, ErrPortInUse):
			n.mu.Lock()
			who := n.outsider(p.PortKey)
			n.mu.Unlock()
			return &portError{errPortTaken(p.PortKey, who), err}
		case e != nil:
			return &portError{api.Errorf(api.Invalid, "Bind for %s failed: %w", p.Host, e), err}
		}
	}
	return api.Errorf(api.Internal, "container %s: set up its network: %w", a.ID, itemsFailed(err, n.itemsOf(a)...))
}

// portError reads like the first and still has the second in its chain.
type portError struct{ first, second error }

func (e *portError) Error() string   { return e.first.Error() }
func (e *portError) Unwrap() []error { return []error{e.first, e.second} }

// joined describes an attachment.
func (n *Networks) joined(a *attachment) *Joined {
	n.mu.Lock()
	defer n.mu.Unlock()
	j := &Joined{Endpoints: map[string]*dnet.EndpointSettings{}, Ports: dnet.PortMap{}}
	if b := n.boxes[a.ID]; b != nil && b.sandbox != nil {
		j.Path = n.plane.Path(a.ID)
	}
	for _, e := range a.shown() {
		if w := n.nets[e.NetworkID]; w != nil {
			j.Endpoints[w.Network.Name] = e.Settings.Copy()
		}
	}
	j.Ports, j.HostGateway = a.portMap(), hostGateway(a)
	if a.Resolves {
		j.DNS = []netip.Addr{ResolverAddr()}
	}
	return j
}

// Leave removes a container's namespace and gives back what it had. What can't
// be removed at once is tried again later. An unknown container is no error.
func (n *Networks) Leave(ctx context.Context, id string) error {
	n.mu.Lock()
	b := n.boxes[id]
	if b != nil {
		n.uninstall(b)
		n.files.want(n.o.RuntimeDir, id, nil)
	}
	n.mu.Unlock()
	n.dropTask(id)
	n.writeFiles()
	if b == nil {
		return nil
	}
	err := n.set.commit(ctx, n.config)
	n.mu.Lock()
	n.release(b.Endpoints)
	grants := n.grantsOf(id, b.Endpoints)
	n.forgetOverlays()
	n.mu.Unlock()
	n.writeFiles()
	n.giveBack(ctx, grants)
	if err := itemsFailed(err, SandboxItem(id)); err != nil {
		n.log.Warn("network: a container's namespace can't be removed yet", "container", id, "error", err)
	}
	return nil
}
