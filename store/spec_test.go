package store

import (
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// TestSaw has a user's update refused for what another user wrote, not for what managers
// wrote.
func TestSaw(t *testing.T) {
	s := newLocal(t, Config{})
	write := func(f func(*Tx) error) {
		t.Helper()
		if _, err := s.Update(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	get := func() *api.Service { return Get[*api.Service](s.View(), "s") }
	change := func(f func(*api.Service)) {
		t.Helper()
		write(func(tx *Tx) error {
			c := *Get[*api.Service](tx, "s")
			f(&c)
			return Put(tx, &c)
		})
	}
	allowed := func(version uint64, want bool) {
		t.Helper()
		if err := Saw(get(), version); (err == nil) != want || err != nil && !api.Is(err, api.OutOfSequence) {
			t.Errorf("version %d of %d: %v", version, get().Version.Index, err)
		}
	}
	write(func(tx *Tx) error { return Create(tx, service("before", "before")) })
	write(func(tx *Tx) error { return Create(tx, service("s", "web")) })
	made := get().Version.Index
	allowed(made, true)
	allowed(made-1, false)
	allowed(made+1, false)

	change(func(s *api.Service) { s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating} })
	noted := get().Version.Index
	allowed(made, true)
	allowed(noted, true)
	allowed(made-1, false)
	allowed(noted+1, false)

	change(func(s *api.Service) { s.Spec.Labels = map[string]string{"a": "b"} })
	allowed(made, false)
	allowed(noted, false)
	allowed(get().Version.Index, true)

	// What was written before versions of specs were kept.
	old := *get()
	old.SpecFrom = 0
	if err := Saw(&old, old.Version.Index-1); !api.Is(err, api.OutOfSequence) {
		t.Error(err)
	}
	if err := Saw(&old, old.Version.Index); err != nil {
		t.Error(err)
	}
	network := &api.Network{}
	network.Version.Index = 7
	if Saw(network, 6) == nil || Saw(network, 7) != nil {
		t.Error("other kinds have but one version")
	}
}
