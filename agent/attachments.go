package agent

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// link is the connection of the session that stands. Safe for concurrent use.
type link struct {
	mu      sync.Mutex
	conn    *grpc.ClientConn // nil: there is none
	changed chan struct{}    // closed and replaced
}

func (l *link) set(conn *grpc.ClientConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *link) get() (*grpc.ClientConn, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn, l.changed
}

// Attachment is a place that a container of this node has in a network of the swarm.
type Attachment struct {
	ID        string
	Container string
	// Network has nothing but its id in Attached's.
	Network   *api.Network
	Addresses []netip.Prefix // one a family
}

// AttachRequest asks for one.
type AttachRequest struct {
	Network         string // name, id or the beginning of an id
	Container, Name string // its id and its name
	Aliases         []string
	Addresses       []netip.Addr // asked for; one a family at most
}

// Attach gets a container a place in an attachable network, in place of the one that
// it had there. It waits for a manager until ctx ends. Errors are the managers';
// Unavailable: none answers. Safe for concurrent use, as are the others.
func (a *Agent) Attach(ctx context.Context, r AttachRequest) (*Attachment, error) {
	req := &swarmpb.AttachRequest{Network: r.Network, ContainerId: r.Container, ContainerName: r.Name, Aliases: r.Aliases}
	for _, addr := range r.Addresses {
		req.Addresses = append(req.Addresses, addr.String())
	}
	var m *swarmpb.Attachment
	err := a.ask(ctx, true, func(c swarmpb.AttachmentsClient) (err error) {
		m, err = c.Attach(ctx, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return attachmentFrom(m)
}

// Detach gives places back, or says at once why not.
func (a *Agent) Detach(ctx context.Context, ids []string) error {
	return a.ask(ctx, false, func(c swarmpb.AttachmentsClient) error {
		_, err := c.Detach(ctx, &swarmpb.DetachRequest{Ids: ids})
		return err
	})
}

// Attached returns the places that managers say this node has. It waits for one
// until ctx ends.
func (a *Agent) Attached(ctx context.Context) ([]Attachment, error) {
	var r *swarmpb.AttachedResponse
	err := a.ask(ctx, true, func(c swarmpb.AttachmentsClient) (err error) {
		r, err = c.Attached(ctx, &swarmpb.AttachedRequest{})
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Attachment, 0, len(r.GetAttachments()))
	for _, m := range r.GetAttachments() {
		x, err := attachmentFrom(m)
		if err != nil {
			return nil, err
		}
		all = append(all, *x)
	}
	return all, nil
}

// askAgain is how long to wait before a manager that could not answer is asked again.
const askAgain = 500 * time.Millisecond

// ask calls the manager that the node has a session with. With patience, it waits
// for one, and asks the next if that goes away.
func (a *Agent) ask(ctx context.Context, patient bool, call func(swarmpb.AttachmentsClient) error) error {
	last := errNoSession()
	for {
		conn, changed := a.link.get()
		if conn != nil {
			err := call(swarmpb.NewAttachmentsClient(conn))
			switch {
			case api.Is(err, api.Unimplemented):
				return api.Errorf(api.Unimplemented, "the manager can't attach containers to networks of the swarm: it is another program's: %w", err)
			case !api.Is(err, api.Unavailable) || !patient:
				return err
			}
			last = err
		}
		if !patient {
			return last
		}
		select {
		case <-changed:
		case <-time.After(askAgain):
		case <-ctx.Done():
			return last
		}
	}
}

func errNoSession() error {
	return api.Errorf(api.Unavailable, "this node has no session with a manager of its swarm")
}

func attachmentFrom(m *swarmpb.Attachment) (*Attachment, error) {
	x := &Attachment{ID: m.GetId(), Container: m.GetContainerId(), Network: m.GetNetwork().API()}
	for _, s := range m.GetAddresses() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, api.Errorf(api.Internal, "a place in network %s with the impossible address %q", x.Network.ID, s)
		}
		x.Addresses = append(x.Addresses, p)
	}
	if x.ID == "" || !validID(x.Network.ID) {
		return nil, api.Errorf(api.Internal, "a place in a network without id, or in one with the impossible id %q", x.Network.ID)
	}
	return x, nil
}
