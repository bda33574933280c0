package store

import (
	"context"
	"errors"
	"testing"

	"github.com/legion-swarm/legion/api"
)

// TestLagging: a function is run on what may be old, and a second time on what is not
// if its first result proves nothing.
func TestLagging(t *testing.T) {
	network := func(id string) *api.Network {
		n := &api.Network{}
		n.ID, n.Spec.Name = id, id
		return n
	}
	failed := errors.New("failed")
	fine := func(err error) bool { return err == nil }
	fails := func(err error) bool { return errors.Is(err, failed) }
	for _, c := range []struct {
		name    string
		runs    int
		caught  error
		fn      func(tx *Tx, run int) error
		want    func(error) bool
		written bool
	}{
		{"what is read by id is compared in the log", 1, nil, func(tx *Tx, _ int) error {
			if Get[*api.Network](tx, "old") == nil {
				return failed
			}
			return Create(tx, network("new"))
		}, fine, true},
		{"a list may be old", 2, nil, func(tx *Tx, _ int) error {
			for range List[*api.Network](tx) {
				break
			}
			return Create(tx, network("new"))
		}, fine, true},
		{"so may what an error is about", 2, nil, func(tx *Tx, run int) error {
			if run == 1 {
				return failed
			}
			return Create(tx, network("new"))
		}, fine, true},
		{"and a name that is taken", 2, nil, func(tx *Tx, _ int) error { return Create(tx, network("old")) }, func(err error) bool { return api.Is(err, api.Exists) }, false},
		{"an error is what the second run says", 2, nil, func(*Tx, int) error { return failed }, fails, false},
		{"nothing to write is a result, too", 2, nil, func(*Tx, int) error { return nil }, fine, false},
		{"it can't be made new", 1, failed, func(*Tx, int) error { return errors.New("another") }, fails, false},
	} {
		s, err := NewLocal(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Update(t.Context(), func(tx *Tx) error { return Create(tx, network("old")) }); err != nil {
			t.Fatal(err)
		}
		runs, calls := 0, 0
		ctx := Lagging(t.Context(), func(context.Context) error {
			calls++
			return c.caught
		})
		_, err = s.Update(ctx, func(tx *Tx) error {
			runs++
			return c.fn(tx, runs)
		})
		if !c.want(err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if runs != c.runs || c.caught == nil && calls != c.runs-1 {
			t.Errorf("%s: it ran %d times, and %d times the store was made new", c.name, runs, calls)
		}
		if got := Get[*api.Network](s.View(), "new") != nil; got != c.written {
			t.Errorf("%s: written: %v", c.name, got)
		}
	}
}
