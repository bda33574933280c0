package sim

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/test/bufconn"
)

// Delays of a message, one way.
const (
	minDelay = 200 * time.Microsecond
	maxDelay = 5 * time.Millisecond
)

// weather is what the network does to messages between managers.
type weather struct {
	loss, twice float64       // of how many
	late        time.Duration // what is added, at most: messages overtake each other
}

// way is from one host to another, by their addresses.
type way struct{ from, to string }

// network is between all hosts. Datagrams (raft's messages) are lost, doubled and
// delayed; what goes through a connection waits while its way is cut.
type network struct {
	mu      sync.Mutex
	rng     *rand.Rand
	hosts   map[string]*host // by address
	cut     map[way]time.Time
	still   map[string]time.Time // hosts whose processes stand still, and since when
	weather weather
	conns   map[*conn]struct{}
	changed chan struct{} // closed and replaced when ways open or close
}

func newNetwork(seed uint64) *network {
	return &network{
		rng: rand.New(rand.NewPCG(seed, 1)), hosts: map[string]*host{}, cut: map[way]time.Time{}, still: map[string]time.Time{},
		conns: map[*conn]struct{}{}, changed: make(chan struct{}),
	}
}

// change changes ways and weather, and tells who waits.
func (n *network) change(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
}

// close cuts a way; it is for change.
func (n *network) close(from, to string) {
	if _, ok := n.cut[way{from, to}]; !ok && from != to {
		n.cut[way{from, to}] = time.Now()
	}
}

// heal opens all ways, but those of hosts without power.
func (n *network) heal() {
	n.change(func() {
		clear(n.cut)
		n.weather = weather{}
		for addr, h := range n.hosts {
			if h.dark {
				n.isolate(addr)
			}
		}
	})
}

// isolate closes all ways from and to a host; it is for change.
func (n *network) isolate(addr string) {
	for other := range n.hosts {
		n.close(addr, other)
		n.close(other, addr)
	}
}

// rejoin opens all ways from and to a host, but to those without power, or if it has none
// itself; it is for change.
func (n *network) rejoin(addr string) {
	for w := range n.cut {
		if (w.from == addr || w.to == addr) && !n.hosts[w.from].dark && !n.hosts[w.to].dark {
			delete(n.cut, w)
		}
	}
}

// open reports whether a way is open between processes that run, and what tells of a
// change.
func (n *network) open(from, to string) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, cut := n.cut[way{from, to}]
	for _, end := range [...]string{from, to} {
		if _, still := n.still[end]; still {
			cut = true
		}
	}
	return !cut, n.changed
}

// heard reports whether what goes both ways was heard within the time.
func (n *network) heard(a, b string, within time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, end := range [...]string{a, b} {
		if since, still := n.still[end]; still && time.Since(since) > within {
			return false
		}
	}
	for _, w := range []way{{a, b}, {b, a}} {
		if since, cut := n.cut[w]; cut && time.Since(since) > within {
			return false
		}
	}
	return true
}

// pass waits until a way is open, and then for the way's length.
func (n *network) pass(end <-chan struct{}, from, to string) error {
	for {
		ok, changed := n.open(from, to)
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-end:
			return net.ErrClosed
		}
	}
}

// datagrams returns when copies of a message arrive; none: it is lost.
func (n *network) datagrams(from, to string) (arrive []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, cut := n.cut[way{from, to}]; cut || n.rng.Float64() < n.weather.loss {
		return nil
	}
	copies := 1
	if n.rng.Float64() < n.weather.twice {
		copies = 2
	}
	for range copies {
		d := minDelay + time.Duration(n.rng.Int64N(int64(maxDelay)))
		if n.weather.late > 0 {
			d += time.Duration(n.rng.Int64N(int64(n.weather.late)))
		}
		arrive = append(arrive, d)
	}
	return arrive
}

// dial connects a host to another one's server.
func (n *network) dial(ctx context.Context, from *host, to string, l *bufconn.Listener) (net.Conn, error) {
	c, err := l.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	out := &conn{Conn: c, net: n, from: from.addr, to: to, closed: make(chan struct{})}
	n.mu.Lock()
	n.conns[out] = struct{}{}
	n.mu.Unlock()
	return out, nil
}

// reset breaks all connections that a host made, as its kernel does when their
// process ends, or when it starts again and knows nothing of them.
func (n *network) reset(from string) {
	n.mu.Lock()
	var broken []*conn
	for c := range n.conns {
		if c.from == from {
			broken = append(broken, c)
			delete(n.conns, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.once.Do(func() { close(c.closed) })
		_ = c.Conn.Close()
	}
}

// closeAll breaks all connections.
func (n *network) closeAll() {
	n.mu.Lock()
	addrs := slices.Collect(maps.Keys(n.hosts))
	n.mu.Unlock()
	for _, addr := range addrs {
		n.reset(addr)
	}
}

// conn is the end of a connection at the host that made it.
type conn struct {
	net.Conn
	net      *network
	from, to string
	closed   chan struct{}
	once     sync.Once
}

// Read delivers what came, and errors too, when the way back is open.
func (c *conn) Read(b []byte) (int, error) {
	k, err := c.Conn.Read(b)
	if err := c.net.pass(c.closed, c.to, c.from); err != nil {
		return 0, err
	}
	return k, err
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.net.pass(c.closed, c.from, c.to); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// Close closes the connection. While the way is cut the other end does not hear
// of it; then reset closes it at last.
func (c *conn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if ok, _ := c.net.open(c.from, c.to); !ok {
		return nil
	}
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Conn.Close()
}
