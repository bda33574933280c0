package linux

import (
	"log/slog"
	"maps"
	"sync"
	"time"
)

// longSet is how long a Set may take before it is worth a warning.
const longSet = time.Second

// SetTimes is what Sets have spent their time on since the start.
type SetTimes struct {
	Sets uint64
	// Parts by name, see parts.
	Parts map[string]time.Duration
}

// parts of a Set, in their order: "wait" is for the Set before, "services" what is
// done first for virtual addresses.
func parts() []string {
	return []string{"wait", "look", "services", "bridges", "overlays", "ports", "rules", "sandboxes", "balancers", "resolvers", "mesh", "remove"}
}

// setTimes adds them up. Safe for concurrent use.
type setTimes struct {
	mu    sync.Mutex
	sets  uint64
	parts map[string]time.Duration
}

// SetTimes returns what Sets have spent their time on.
func (p *Plane) SetTimes() SetTimes {
	p.times.mu.Lock()
	defer p.times.mu.Unlock()
	return SetTimes{Sets: p.times.sets, Parts: maps.Clone(p.times.parts)}
}

// stopwatch measures the parts of one Set.
type stopwatch struct {
	begin, last time.Time
	parts       map[string]time.Duration
}

func newStopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{begin: now, last: now, parts: map[string]time.Duration{}}
}

// did says what the time since it was last called was spent on.
func (s *stopwatch) did(part string) {
	now := time.Now()
	s.parts[part] += now.Sub(s.last)
	s.last = now
}

// measured notes what a Set has taken, and says so if that was long.
func (p *Plane) measured(s *stopwatch) {
	p.times.mu.Lock()
	if p.times.sets++; p.times.parts == nil {
		p.times.parts = map[string]time.Duration{}
	}
	for part, d := range s.parts {
		p.times.parts[part] += d
	}
	p.times.mu.Unlock()
	took := s.last.Sub(s.begin)
	say := p.log.Debug
	if took > longSet {
		say = p.log.Warn
	}
	attrs := []any{"took", took.Round(time.Microsecond)}
	for _, part := range parts() {
		if d := s.parts[part].Round(time.Microsecond); d >= time.Millisecond {
			attrs = append(attrs, slog.Duration(part, d))
		}
	}
	say("network: the node's network was set", attrs...)
}
