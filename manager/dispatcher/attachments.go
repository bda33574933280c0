package dispatcher

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// maxAttachments bounds the containers' places of one node.
	maxAttachments = 16384
	// maxAliases and maxAttachName bound what a node says of a container.
	maxAliases, maxAttachName = 256, 255
	// attachPatience bounds how long a container waits for its address.
	attachPatience = 10 * time.Second
)

// attachments serves nodes whose users run containers in networks of the swarm.
type attachments struct {
	swarmpb.UnimplementedAttachmentsServer
	*Dispatcher
}

// Attach implements the Attachments service. NotFound: there is no such network;
// PermissionDenied: it is not attachable; Invalid, Conflict, ResourceExhausted: of
// the address.
func (a *attachments) Attach(ctx context.Context, req *swarmpb.AttachRequest) (*swarmpb.Attachment, error) {
	node, err := a.caller(ctx)
	if err != nil {
		return nil, err
	}
	t, err := attachmentFrom(req)
	if err != nil {
		return nil, err
	}
	if n, err := a.known(ctx, node); err != nil {
		return nil, err
	} else if n == nil {
		return nil, errNotInSwarm(node)
	}
	t.NodeID = node
	n, err := a.attach(ctx, t, req.GetNetwork())
	if api.Is(err, api.NotFound) && a.cfg.Sync(ctx) == nil { // it may have been made at another manager just now
		n, err = a.attach(ctx, t, req.GetNetwork())
	}
	if err != nil {
		return nil, err
	}
	given, err := a.allocated(ctx, t.ID)
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), attachPatience)
		defer cancel()
		if e := a.remove(clean, node, []string{t.ID}); e != nil {
			a.cfg.Log.Warn("an attachment that came to nothing can't be removed; its node will say so again", "task", t.ID, "err", e)
		}
		return nil, err
	}
	m := attachmentOf(given)
	m.Network = swarmpb.NewNetwork(n)
	return m, nil
}

// attachmentFrom makes the task, without network and node.
func attachmentFrom(req *swarmpb.AttachRequest) (*api.Task, error) {
	c := &api.AttachedContainer{Name: req.GetContainerName()}
	for _, s := range req.GetAddresses() {
		addr, err := netip.ParseAddr(s)
		if err != nil || slices.ContainsFunc(c.Addresses, func(o netip.Addr) bool { return o.Is4() == addr.Is4() }) {
			return nil, api.Errorf(api.Invalid, "addresses %q: want one of each family at most", req.GetAddresses())
		}
		c.Addresses = append(c.Addresses, addr)
	}
	long := func(s string) bool { return len(s) > maxAttachName }
	if id := req.GetContainerId(); id == "" || long(id) || long(c.Name) || len(req.GetAliases()) > maxAliases || slices.ContainsFunc(req.GetAliases(), long) {
		return nil, api.Errorf(api.Invalid, "container %q (%q): its id is missing, a name is longer than %d bytes, or it has more than %d aliases", id[:min(len(id), maxAttachName)], c.Name[:min(len(c.Name), maxAttachName)], maxAttachName, maxAliases)
	}
	return &api.Task{
		ID: api.NewID(), DesiredState: swarm.TaskStateRunning,
		Status: swarm.TaskStatus{State: swarm.TaskStateNew, Timestamp: time.Now().UTC(), Message: "created"},
		Spec: &api.TaskSpec{Container: c, TaskSpec: swarm.TaskSpec{
			Runtime: swarm.RuntimeNetworkAttachment, NetworkAttachmentSpec: &swarm.NetworkAttachmentSpec{ContainerID: req.GetContainerId()},
			Networks: []swarm.NetworkAttachmentConfig{{Aliases: req.GetAliases()}},
		}},
	}, nil
}

// attach writes the task down in place of those that the container has in the
// network.
func (a *attachments) attach(ctx context.Context, t *api.Task, name string) (n *api.Network, err error) {
	_, err = a.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		if n, err = attachable(tx, name, t.Spec.Container); err != nil {
			return err
		}
		if store.Get[*api.Node](tx, t.NodeID) == nil {
			return errNotInSwarm(t.NodeID) // since a moment ago
		}
		count := 0
		for old := range store.List[*api.Task](tx, store.ByNode(t.NodeID)) {
			if !old.Attachment() {
				continue
			}
			count++
			if old.Spec.NetworkAttachmentSpec.ContainerID == t.Spec.NetworkAttachmentSpec.ContainerID && old.Spec.Networks[0].Target == n.ID {
				if err := store.Delete[*api.Task](tx, old.ID); err != nil {
					return err
				}
			}
		}
		if count >= maxAttachments {
			return api.Errorf(api.ResourceExhausted, "node %s has %d containers in networks of the swarm, the most it may have", t.NodeID, count)
		}
		c, spec := *t, *t.Spec
		spec.Networks = []swarm.NetworkAttachmentConfig{{Target: n.ID, Aliases: t.Spec.Networks[0].Aliases}}
		c.Spec = &spec
		return store.Create(tx, &c)
	})
	return n, err
}

// attachable finds the network and refuses what can be refused before there is an
// address.
func attachable(tx *store.Tx, name string, c *api.AttachedContainer) (*api.Network, error) {
	n, err := findNetwork(tx, name)
	switch {
	case err != nil:
		return nil, err
	case n.Predefined:
		return nil, api.Errorf(api.NotFound, "network %s not found in the swarm: every node has its own", name)
	case !n.Spec.Attachable:
		return nil, api.Errorf(api.PermissionDenied, "could not attach to network %s: it is not manually attachable: make it with --attachable", n.Spec.Name)
	}
	for _, addr := range c.Addresses {
		switch i := slices.IndexFunc(n.Subnets(), func(p netip.Prefix) bool { return p.Contains(addr) }); {
		case i < 0:
			return nil, api.Errorf(api.Invalid, "network %s: address %s (--ip, --ip6) is in none of its subnets %v", n.Spec.Name, addr, n.Subnets())
		case api.OwnOfSubnet(n.Subnets()[i], addr):
			return nil, api.Errorf(api.Invalid, "network %s: address %s (--ip, --ip6) is its subnet's own, not a host's", n.Spec.Name, addr)
		}
	}
	return n, nil
}

func findNetwork(tx *store.Tx, name string) (*api.Network, error) {
	if n := store.Get[*api.Network](tx, name); n != nil {
		return n, nil
	}
	for n := range store.List[*api.Network](tx, store.ByName(name)) {
		return store.Get[*api.Network](tx, n.ID), nil
	}
	var found *api.Network
	for n := range store.List[*api.Network](tx, store.ByIDPrefix(name)) {
		if name == "" || found != nil {
			return nil, api.Errorf(api.Invalid, "network %q is ambiguous: more than one id begins with it; give more of the id, or the name", name)
		}
		found = n
	}
	if found == nil {
		return nil, api.Errorf(api.NotFound, "network %s not found", name)
	}
	return store.Get[*api.Network](tx, found.ID), nil
}

// allocated waits until the allocator has said what comes of the task.
func (a *attachments) allocated(ctx context.Context, id string) (*api.Task, error) {
	ctx, cancel := context.WithTimeout(ctx, attachPatience)
	defer cancel()
	for {
		view, w := a.cfg.Store.Watch(store.KindTask)
		t, err := decided(ctx, store.Get[*api.Task](view, id), w, id)
		w.Close()
		if !errors.Is(err, store.ErrOverflow) {
			return t, err
		}
	}
}

func decided(ctx context.Context, t *api.Task, w *store.Watcher, id string) (*api.Task, error) {
	for {
		switch {
		case t == nil:
			return nil, api.Errorf(api.NotFound, "the container's place was given back before it had an address: its network was removed, or its node")
		case t.Status.State == swarm.TaskStateRunning:
			return t, nil
		case t.Status.State == swarm.TaskStateNew && t.Status.Err != "":
			class := api.ResourceExhausted
			if len(t.Spec.Container.Addresses) > 0 {
				class = api.Conflict
			}
			return nil, api.Errorf(class, "%s", t.Status.Err)
		case api.Final(t.Status.State):
			return nil, api.Errorf(api.Unavailable, "the container's place was given up: %s", t.Status.Message)
		}
		changes, err := w.Next(ctx)
		if ctx.Err() != nil {
			return nil, api.Errorf(api.DeadlineExceeded, "no address was given within %v: the swarm may have no leader", attachPatience)
		}
		if err != nil {
			return nil, err
		}
		for _, c := range changes {
			if c.ID == id {
				t = object[api.Task](c.New)
			}
		}
	}
}

func attachmentOf(t *api.Task) *swarmpb.Attachment {
	m := &swarmpb.Attachment{Id: t.ID, ContainerId: t.Spec.NetworkAttachmentSpec.ContainerID, Network: &swarmpb.Network{Id: t.Spec.Networks[0].Target}}
	for i := range t.Networks {
		for _, p := range t.Networks[i].Addresses {
			m.Addresses = append(m.Addresses, p.String())
		}
	}
	return m
}

// Detach implements the Attachments service.
func (a *attachments) Detach(ctx context.Context, req *swarmpb.DetachRequest) (*swarmpb.DetachResponse, error) {
	node, err := a.caller(ctx)
	if err != nil {
		return nil, err
	}
	if n := len(req.GetIds()); n > maxAttachments {
		return nil, api.Errorf(api.Invalid, "%d attachments in one call: at most %d", n, maxAttachments)
	}
	return &swarmpb.DetachResponse{}, a.remove(ctx, node, req.GetIds())
}

// remove deletes attachments of a node.
func (a *attachments) remove(ctx context.Context, node string, ids []string) error {
	_, err := a.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			if t := store.Get[*api.Task](tx, id); t != nil && t.NodeID == node && t.Attachment() {
				if err := store.Delete[*api.Task](tx, id); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return err
}

// Attached implements the Attachments service.
func (a *attachments) Attached(ctx context.Context, _ *swarmpb.AttachedRequest) (*swarmpb.AttachedResponse, error) {
	node, err := a.caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Sync(ctx); err != nil {
		return nil, api.Errorf(api.Unavailable, "this manager can't tell what node %s has: %w", node, err)
	}
	r := &swarmpb.AttachedResponse{}
	for t := range store.List[*api.Task](a.cfg.Store.View(), store.ByNode(node)) {
		if t.Attachment() && !api.Final(t.Status.State) {
			r.Attachments = append(r.Attachments, attachmentOf(t))
		}
	}
	return r, nil
}
