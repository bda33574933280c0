package netkeys

import (
	"slices"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

const (
	// Age is how long a key is sent with.
	Age = 12 * time.Hour
	// spread is how long nodes have to hear of a change when all keys are replaced.
	spread = 20 * time.Second
	// Replaced is how many changes that takes.
	Replaced = 3
)

// Needed reports whether there is a network that needs keys.
func Needed(r store.Reader) bool {
	for n := range store.List[*api.Network](r) {
		if n.Encrypted() {
			return true
		}
	}
	return false
}

// Plan returns what keys there are to be, and how long until there are to be others;
// 0: until something else changes. What it returns is a copy. secret makes a key.
func Plan(is api.NetworkKeys, needed bool, now time.Time, secret func() [32]byte) (api.NetworkKeys, time.Duration) {
	if !needed {
		return api.NetworkKeys{Last: is.Last}, 0
	}
	n := is
	n.Keys = slices.Clone(is.Keys)
	add := func() {
		n.Last++
		n.Keys = append(n.Keys, api.OverlayKey{ID: n.Last, Secret: secret()})
	}
	at := slices.IndexFunc(n.Keys, func(k api.OverlayKey) bool { return k.ID == n.Send })
	switch {
	case at < 0:
		n = api.NetworkKeys{Last: n.Last}
		add()
		n.Send, n.Since = n.Last, now
		add()
		return n, Age
	case due(n, now) > 0:
		return n, due(n, now)
	}
	if at+1 == len(n.Keys) {
		add()
	}
	// The next key is sent with; the one before stays for what is under way.
	n.Keys = n.Keys[at:]
	n.Send, n.Since, n.Replace = n.Keys[1].ID, now, max(n.Replace-1, 0)
	if len(n.Keys) == 2 {
		add()
	}
	return n, due(n, now)
}

// due is in how long the next change comes. It comes at once if a clock was set back
// since the last one: else nobody could tell how old the key is.
func due(n api.NetworkKeys, now time.Time) time.Duration {
	age := Age
	if n.Replace > 0 {
		age = spread
	}
	left := n.Since.Add(age).Sub(now)
	if left > age+spread { // less may be how far managers' clocks differ
		return 0
	}
	return max(min(left, age), 0)
}
