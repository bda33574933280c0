package agent

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/moby/moby/api/types/swarm"
)

const (
	// penalty is by how much less a manager is chosen for each failure since it
	// last served; maxFailures bounds how far that goes, so that it is tried
	// again some day.
	penalty     = 8
	maxFailures = 3
	// fleeting is how many failures in a row the preferred manager may have.
	fleeting = 2
	// maxManagers bounds what is kept of what a manager says.
	maxManagers   = 256
	defaultWeight = 1
)

// Managers are the managers that a node knows of, and how it went with them of
// late. One that serves is taken again and again, one that failed seldom. Safe
// for concurrent use; make one with NewManagers.
type Managers struct {
	random func() float64

	mu    sync.Mutex
	known []candidate
	fails uint64 // so far
}

type candidate struct {
	Manager
	failures int
	failed   uint64 // the number of its last failure, if none has served since
}

// Manager is a manager and how much it is to be chosen beside others.
type Manager struct {
	swarm.Peer
	Weight int64
}

// NewManagers returns the managers that a node begins with.
func NewManagers(peers []swarm.Peer) *Managers {
	m := &Managers{random: rand.Float64}
	list := make([]Manager, 0, len(peers))
	for _, p := range peers {
		list = append(list, Manager{Peer: p, Weight: defaultWeight})
	}
	m.Set(list)
	return m
}

// Set replaces the list by what a manager says. An empty one says nothing, and
// changes nothing.
func (m *Managers) Set(list []Manager) {
	if len(list) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var known []candidate
	for _, p := range list[:min(len(list), maxManagers)] {
		if p.Addr == "" || slices.ContainsFunc(known, func(c candidate) bool { return c.Addr == p.Addr }) {
			continue
		}
		c := candidate{Manager: p}
		c.Weight = max(c.Weight, defaultWeight)
		if i := m.index(p.Addr); i >= 0 {
			c.failures, c.failed = m.known[i].failures, m.known[i].failed
		}
		known = append(known, c)
	}
	if len(known) > 0 {
		m.known = known
	}
}

// List returns the managers, as they were told.
func (m *Managers) List() []swarm.Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	peers := make([]swarm.Peer, len(m.known))
	for i, c := range m.known {
		peers[i] = c.Peer
	}
	return peers
}

// Pick chooses a manager's address: the preferred one unless that fails again
// and again, else one by weight and luck, never an excluded one. None that failed is
// picked again before all others did, and then in turn. Empty: there is none.
func (m *Managers) Pick(prefer, exclude string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.index(prefer); i >= 0 && m.known[i].failures < fleeting {
		return prefer
	}
	open := slices.DeleteFunc(slices.Clone(m.known), func(c candidate) bool { return c.Addr == exclude })
	if len(open) == 0 {
		return ""
	}
	longest := slices.MinFunc(open, func(a, b candidate) int { return cmp.Compare(a.failed, b.failed) })
	if longest.failed > 0 {
		return longest.Addr
	}
	open = slices.DeleteFunc(open, func(c candidate) bool { return c.failed > 0 })
	total := 0.0
	for _, c := range open {
		total += c.score()
	}
	at, last := m.random()*total, ""
	for _, c := range open {
		last = c.Addr
		if at -= c.score(); at < 0 {
			break
		}
	}
	return last
}

func (c candidate) score() float64 {
	s := float64(c.Weight)
	for range c.failures {
		s /= penalty
	}
	return s
}

// Served notes that a manager answered as it should.
func (m *Managers) Served(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.index(addr); i >= 0 {
		m.known[i].failures = 0
	}
	for i := range m.known {
		m.known[i].failed = 0
	}
}

// Failed notes that a manager did not.
func (m *Managers) Failed(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.index(addr); i >= 0 {
		m.known[i].failures = min(m.known[i].failures+1, maxFailures)
		m.fails++
		m.known[i].failed = m.fails
	}
}

func (m *Managers) index(addr string) int {
	return slices.IndexFunc(m.known, func(c candidate) bool { return c.Addr == addr })
}
