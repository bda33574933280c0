package orchestrator_test

import (
	"testing"
	"time"
)

// TestMovesInVain: a move that finds no room, as of addresses, is given up after a
// minute, and the service is left alone for ten; then nothing is left of it.
func TestMovesInVain(t *testing.T) {
	w := newWorld(t)
	w.node("n1", nil)
	w.command([]string{"service", "web", "replicas=3", "rebalance=true", "order=start-first"})
	w.settle()
	w.node("n2", nil)
	moves := func(d time.Duration) int {
		was := w.names["web.1"] + w.names["web.2"] + w.names["web.3"]
		for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Second) {
			for w.plan() {
			}
		}
		return w.names["web.1"] + w.names["web.2"] + w.names["web.3"] - was
	}
	if n := moves(9 * time.Minute); n != 1 || len(w.tasks) != 4 {
		t.Errorf("%d moves in nine minutes, and %d tasks", n, len(w.tasks))
	}
	if n := moves(9 * time.Minute); n != 1 || len(w.tasks) != 4 {
		t.Errorf("%d moves in the next nine minutes, and %d tasks", n, len(w.tasks))
	}
}
