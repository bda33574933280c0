package rotator

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func service(status *swarm.UpdateStatus) *api.Service {
	s := &api.Service{}
	s.ID, s.Spec.Name, s.Spec.Labels, s.UpdateStatus = "web", "web", map[string]string{"legion.rotate": "true"}, status
	s.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{
		Secrets: []*swarm.SecretReference{{SecretID: "1", SecretName: "pw", File: &swarm.SecretReferenceFileTarget{Name: "pw"}}},
	}
	return s
}

func versions(at ...time.Time) *Versions {
	v := &Versions{}
	for i, t := range at {
		a := &swarm.Annotations{Name: "pw"}
		if i > 0 {
			a.Name, a.Labels = "pw-"+string(rune('1'+i)), map[string]string{api.VersionOfLabel: "pw"}
		}
		v.secrets.add(string(rune('1'+i)), a, t)
	}
	return v
}

// A service that was rolled back to its old secret stays with it until there is
// one that was created later.
func TestRolledBack(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	before := versions(t0, t0.Add(time.Minute))
	for _, state := range []swarm.UpdateState{swarm.UpdateStateRollbackStarted, swarm.UpdateStateRollbackPaused, swarm.UpdateStateRollbackCompleted} {
		s := service(&swarm.UpdateStatus{State: state, StartedAt: new(t0.Add(time.Hour))})
		if _, changed := Plan(s, before); changed {
			t.Errorf("%s: it takes up what it was rolled back from", state)
		}
		spec, changed := Plan(s, versions(t0, t0.Add(time.Minute), t0.Add(2*time.Hour)))
		if !changed || spec.TaskTemplate.ContainerSpec.Secrets[0].SecretName != "pw-3" {
			t.Errorf("%s: a later version is another try", state)
		}
	}
	for _, status := range []*swarm.UpdateStatus{nil, {State: swarm.UpdateStateCompleted, StartedAt: new(t0.Add(time.Hour))}} {
		s := service(status)
		spec, changed := Plan(s, before)
		if r := spec.TaskTemplate.ContainerSpec.Secrets[0]; !changed || r.SecretID != "2" || r.File.Name != "pw" {
			t.Errorf("%+v: %+v", status, r)
		}
		if s.Spec.TaskTemplate.ContainerSpec.Secrets[0].SecretID != "1" {
			t.Error("the service itself was changed")
		}
	}
}

func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := store.NewLocal(store.Config{})
		if err != nil {
			t.Fatal(err)
		}
		update := func(f func(tx *store.Tx) error) {
			t.Helper()
			if _, err := st.Update(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		refuse := api.Errorf(api.OutOfSequence, "it changed")
		tries := 0
		l := &Loop{Store: st, Log: slog.New(slog.DiscardHandler), Update: func(ctx context.Context, id string, version uint64, spec *swarm.ServiceSpec) error {
			if tries++; refuse != nil {
				return refuse
			}
			_, err := st.Update(ctx, func(tx *store.Tx) error {
				n := *store.Get[*api.Service](tx, id)
				n.Version.Index, n.Spec = version, *spec
				return store.Put(tx, &n)
			})
			return err
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- l.Run(ctx) }()
		secret := func(id, name, of string) {
			t.Helper()
			time.Sleep(time.Second)
			update(func(tx *store.Tx) error {
				s := &api.Secret{}
				s.ID, s.Spec.Name, s.Spec.Labels = id, name, map[string]string{}
				if of != "" {
					s.Spec.Labels[api.VersionOfLabel] = of
				}
				return store.Create(tx, s)
			})
		}
		has := func(want string, wantTries int) {
			t.Helper()
			if got := store.Get[*api.Service](st.View(), "web").Spec.TaskTemplate.ContainerSpec.Secrets[0].SecretName; got != want || tries != wantTries {
				t.Errorf("it has %s after %d tries, want %s after %d", got, tries, want, wantTries)
			}
		}
		secret("1", "pw", "")
		update(func(tx *store.Tx) error { return store.Create(tx, service(nil)) })
		has("pw", 0)
		secret("2", "pw-2", "pw")
		has("pw", 1)
		refuse = nil
		update(func(tx *store.Tx) error { // what outran the loop
			n := *store.Get[*api.Service](tx, "web")
			n.Spec.Labels = map[string]string{"legion.rotate": "true", "a": "b"}
			return store.Put(tx, &n)
		})
		has("pw-2", 2)
		update(func(tx *store.Tx) error {
			n := *store.Get[*api.Service](tx, "web")
			n.Spec.Labels = nil
			return store.Put(tx, &n)
		})
		secret("3", "pw-3", "pw")
		has("pw-2", 2)
		cancel()
		if err := <-ended; ctx.Err() == nil {
			t.Error(err)
		}
	})
}
