package api_test

import (
	"testing"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Since when a task is in its state, by its node's clock only where that can be right.
func TestSince(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_900_000_000+int64(s), 0) }
	for name, c := range map[string]struct{ created, updated, node, since, born int }{
		"as it should be":                        {created: 0, updated: 20, node: 10, since: 10, born: 0},
		"the node's clock is ahead":              {created: 0, updated: 20, node: 4000, since: 20, born: 0},
		"the node's clock is behind":             {created: 0, updated: 20, node: -4000, since: 20, born: 0},
		"made after one whose time is to come":   {created: 4000, updated: 20, node: 10, since: 20, born: 20},
		"and its node has the clock of that one": {created: 4000, updated: 20, node: 4010, since: 20, born: 20},
	} {
		task := &api.Task{}
		task.CreatedAt, task.UpdatedAt, task.Status.Timestamp = at(c.created), at(c.updated), at(c.node)
		if got := task.Since(); !got.Equal(at(c.since)) {
			t.Errorf("%s: since %v, want %v", name, got, at(c.since))
		}
		if got := task.Born(); !got.Equal(at(c.born)) {
			t.Errorf("%s: born %v, want %v", name, got, at(c.born))
		}
	}
}
