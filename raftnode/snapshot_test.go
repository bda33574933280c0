package raftnode

import (
	"strings"
	"testing"

	"github.com/legion-swarm/legion/raftnode/disktest"
)

func TestSnapshotDue(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		entries uint64
		log     int
		state   int64
		want    bool
	}{
		"few entries":                           {entries: 99, log: mib, state: 100},
		"the interval":                          {entries: 100, log: 1, state: 100, want: true},
		"the interval, and nothing known":       {entries: 100, log: 1, want: true},
		"a large state, and little log":         {entries: 100, log: 10*mib - 1, state: 40 * mib},
		"a large state, and a quarter of it":    {entries: 100, log: 10 * mib, state: 40 * mib, want: true},
		"a large state, and long ago":           {entries: 800, log: 1, state: 40 * mib, want: true},
		"a large state, and not so long ago":    {entries: 799, log: 1, state: 40 * mib},
		"few large entries":                     {entries: 1, log: 64 * mib, state: 100, want: true},
		"few large entries of a large state":    {entries: 1, log: 190*mib - 1, state: 190 * mib},
		"as many as a large state":              {entries: 1, log: 190 * mib, state: 190 * mib, want: true},
		"fewer than a very large state":         {entries: 1, log: 256*mib - 1, state: 800 * mib},
		"as much as may be, with a large state": {entries: 1, log: 256 * mib, state: 800 * mib, want: true},
	} {
		var a applySide
		a.snapped, a.bytes = 7, c.log
		a.index.Store(7 + c.entries)
		a.every.Store(100)
		a.size.Store(c.state)
		if got := a.due(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestSnapshotOfLargeState takes the second snapshot later than the first, also
// after a restart: the size is that of the file.
func TestSnapshotOfLargeState(t *testing.T) {
	fs := disktest.New()
	every := func(c *Config) { c.SnapshotInterval = 10 }
	s := startSolo(t, fs, every)
	s.propose(t, strings.Repeat("x", 2*snapshotSmall))
	for s.Status().Applied < 10 {
		s.propose(t, "small")
	}
	first := nextSnapshot(s, 0)
	for s.Status().Applied < first+20 {
		s.propose(t, "small")
	}
	s.stop(t)
	s = startSolo(t, fs, every)
	for s.Status().Applied < first+10*snapshotDelay {
		s.propose(t, "small")
	}
	if got, want := nextSnapshot(s, first), first+10*snapshotDelay; got != want {
		t.Errorf("snapshots of entries %d and %d; want the second at %d", first, got, want)
	}
	s.stop(t)
}

// nextSnapshot waits for a snapshot that is newer.
func nextSnapshot(s *solo, than uint64) uint64 {
	for {
		changed := s.Changed()
		if i := s.Status().SnapshotIndex; i > than {
			return i
		}
		<-changed
	}
}
