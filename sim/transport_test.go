package sim

import (
	"context"
	"io"
	"sync"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/raftnode"
)

// callTimeout is after what managers give up a call to each other.
const callTimeout = 3 * time.Second

// transport is a manager's end of what managers say to each other.
type transport struct {
	net  *network
	from string
	id   uint64   // in raft
	book *contact // nil: only for calls
}

// contact is where a manager heard that others can be reached, apart from its
// log: one that lags does not find its leader there.
type contact struct {
	mu    sync.Mutex
	addrs map[uint64]string
}

func (b *contact) heard(id uint64, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

func (b *contact) find(to raftnode.Member) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if to.Address == "" {
		return b.addrs[to.ID]
	}
	return to.Address
}

var _ raftnode.Transport = transport{}

func (t transport) Send(to raftnode.Member, message []byte) {
	addr := t.book.find(to)
	if t.net.goOn(t.from); t.net.killed(t.from) {
		return
	}
	for _, d := range t.net.datagrams(t.from, addr) {
		time.AfterFunc(d, func() {
			if !t.net.buffers(addr) {
				return
			}
			t.net.goOn(addr)
			if m := t.net.manager(addr); m != nil {
				m.book.heard(t.id, t.from)
				_ = m.raft.Step(message) // as a network does
			}
		})
	}
}

func (t transport) SendSnapshot(ctx context.Context, to raftnode.Member, message []byte, data io.Reader) error {
	addr := t.book.find(to)
	m, err := t.call(ctx, addr)
	if err != nil {
		return err
	}
	if err := m.raft.StepSnapshot(ctx, message, &torn{data, t, addr}); err != nil {
		return err
	}
	return t.answer(ctx, addr)
}

// torn is a stream that breaks when its way is cut.
type torn struct {
	io.Reader
	t  transport
	to string
}

func (r *torn) Read(b []byte) (int, error) {
	if ok, _ := r.t.net.open(r.t.from, r.to); !ok {
		return 0, io.ErrUnexpectedEOF
	}
	return r.Reader.Read(b)
}

func (t transport) Propose(ctx context.Context, to raftnode.Member, term uint64, entry []byte) error {
	addr := t.book.find(to)
	m, err := t.call(ctx, addr)
	if err != nil {
		return err
	}
	if err := m.raft.Accept(ctx, term, entry); err != nil {
		return err
	}
	return t.answer(ctx, addr)
}

// call goes to a manager's process.
func (t transport) call(ctx context.Context, to string) (*manager, error) {
	if err := t.walk(ctx, t.from, to); err != nil {
		return nil, err
	}
	m := t.net.manager(to)
	if m == nil {
		return nil, api.Errorf(api.Unavailable, "%s refuses the connection", to)
	}
	return m, nil
}

func (t transport) answer(ctx context.Context, from string) error { return t.walk(ctx, from, t.from) }

// walk goes a way, and waits while it is cut.
func (t transport) walk(ctx context.Context, from, to string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	d := minDelay
	t.net.mu.Lock()
	d += time.Duration(t.net.rng.Int64N(int64(maxDelay)))
	t.net.mu.Unlock()
	pause(ctx, d)
	if err := t.net.pass(ctx.Done(), from, to); err != nil {
		return api.Errorf(api.Unavailable, "%s does not answer", to)
	}
	return nil
}

// pause waits; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// manager returns the manager that runs at an address; nil: none does.
func (n *network) manager(addr string) *manager {
	n.mu.Lock()
	h := n.hosts[addr]
	n.mu.Unlock()
	if h == nil {
		return nil
	}
	return h.managing()
}
