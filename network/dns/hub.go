package dns

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/network"
)

const (
	// maxForwards bounds the queries of all sandboxes of a node that others are
	// being asked for, each with a socket; maxOwnForwards those of one sandbox.
	maxForwards    = 2048
	maxOwnForwards = 512
	// maxConns bounds a sandbox's TCP connections to its resolver.
	maxConns = 64
	// maxServers bounds how many servers are asked for one query.
	maxServers = 6
	// patience is how long a server may take until the next is asked, too, and
	// allowed how long all of them may together: less than the five seconds after
	// which clients ask again.
	patience = time.Second
	allowed  = 4500 * time.Millisecond
	// idle is how long a TCP client may be silent.
	idle = 10 * time.Second
	// pause is how long to wait after a failure to accept or to read.
	pause = 20 * time.Millisecond
)

// Dial opens a socket to a server, connected; network is "udp" or "tcp".
type Dial func(ctx context.Context, network string, server netip.AddrPort) (net.Conn, error)

// Hub has what the servers of a node share: the names, which change for all at
// once, and the bounds on what is forwarded. All methods but SetZones are safe for
// concurrent use.
type Hub struct {
	dial   Dial
	names  atomic.Pointer[Names]
	slots  chan struct{}
	health health
}

// NewHub returns a hub that knows no names. dial reaches servers from the host.
func NewHub(dial Dial, log *slog.Logger) *Hub {
	h := &Hub{dial: dial, slots: make(chan struct{}, maxForwards), health: health{log: log}}
	h.names.Store(NewNames(nil, nil))
	return h
}

// SetZones replaces the names. Queries that arrive after it has returned are
// answered by the new ones. Calls are made one after the other.
func (h *Hub) SetZones(zones map[string]*network.Zone) {
	h.names.Store(NewNames(zones, h.names.Load()))
}

// health remembers which servers do not answer. A nil one remembers nothing.
type health struct {
	log *slog.Logger

	mu      sync.Mutex
	servers map[netip.AddrPort]*ailing
}

// ailing is a server that has left queries unanswered since it last answered.
type ailing struct {
	missed int
	retry  time.Time // when it is asked in its turn again
}

const (
	// missesToAvoid is after how many queries without answer in a row a server is
	// asked last, for avoidance.
	missesToAvoid = 3
	avoidance     = 10 * time.Second
	// maxAiling bounds how many servers are remembered.
	maxAiling = 1024
)

// order returns servers in the order in which they are asked: as given, but
// those last that do not answer.
func (h *health) order(servers []netip.AddrPort, now time.Time) []netip.AddrPort {
	servers = servers[:min(len(servers), maxServers)]
	if h == nil {
		return servers
	}
	l := make([]netip.AddrPort, 0, len(servers))
	var last []netip.AddrPort
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range servers {
		a := h.servers[s]
		if a == nil || a.missed < missesToAvoid {
			l = append(l, s)
			continue
		}
		if now.After(a.retry) {
			a.retry = now.Add(avoidance) // one query tries it
			l = append(l, s)
			continue
		}
		last = append(last, s)
	}
	return append(l, last...)
}

func (h *health) answered(s netip.AddrPort) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a := h.servers[s]; a != nil && a.missed >= missesToAvoid {
		h.log.Info("a name server answers again", "server", s)
	}
	delete(h.servers, s)
}

func (h *health) missed(s netip.AddrPort, now time.Time) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.servers == nil || len(h.servers) >= maxAiling {
		h.servers = map[netip.AddrPort]*ailing{}
	}
	a := h.servers[s]
	if a == nil {
		a = &ailing{}
		h.servers[s] = a
	}
	if a.missed++; a.missed == missesToAvoid {
		a.retry = now.Add(avoidance)
		h.log.Warn("a name server does not answer containers' queries; where there are others they are asked first", "server", s)
	}
}
