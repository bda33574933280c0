package netkeys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

func numbered() func() [32]byte {
	n := byte(0)
	return func() (b [32]byte) {
		n++
		b[0] = n
		return b
	}
}

func describe(k api.NetworkKeys) string {
	s := ""
	for _, x := range k.Keys {
		s += fmt.Sprint(x.ID)
		if x.ID == k.Send {
			s += "*"
		}
		s += " "
	}
	return fmt.Sprintf("%srest %d", s, k.Replace)
}

func TestPlan(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	secret := numbered()
	var k api.NetworkKeys
	for _, s := range []struct {
		after  time.Duration
		needed bool
		ask    bool
		want   string
		wait   time.Duration
	}{
		{0, false, false, "rest 0", 0},
		{time.Hour, true, false, "1* 2 rest 0", Age},
		{time.Hour, true, false, "1* 2 rest 0", Age - time.Hour},
		{Age - time.Hour, true, false, "1 2* 3 rest 0", Age},
		{Age + time.Hour, true, false, "2 3* 4 rest 0", Age},
		{time.Second, true, true, "2 3* 4 rest 3", spread - time.Second},
		{spread, true, false, "3 4* 5 rest 2", spread},
		{spread / 2, true, false, "3 4* 5 rest 2", spread / 2},
		{spread / 2, true, false, "4 5* 6 rest 1", spread},
		{spread, true, false, "5 6* 7 rest 0", Age},
		{-spread, true, false, "5 6* 7 rest 0", Age}, // another manager's clock is behind
		{-Age, true, false, "6 7* 8 rest 0", Age},    // the clock is set back
		{0, false, false, "rest 0", 0},
		{0, true, false, "9* 10 rest 0", Age},
	} {
		now = now.Add(s.after)
		if s.ask {
			k.Replace = Replaced
		}
		before := slices.Clone(k.Keys)
		n, wait := Plan(k, s.needed, now, secret)
		if describe(n) != s.want || wait != s.wait {
			t.Errorf("%v later: %s, again in %v; want %s in %v", s.after, describe(n), wait, s.want, s.wait)
		}
		if !slices.Equal(before, k.Keys) {
			t.Error("what it was given is changed")
		}
		k = n
	}
}

// Whatever a node was told last, up to one change ago, it and the others understand
// each other.
func TestLateNodes(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		secret := numbered()
		var k api.NetworkKeys
		var told []api.NetworkKeys
		for range rapid.IntRange(2, 20).Draw(r, "steps") {
			if rapid.IntRange(0, 4).Draw(r, "asked for") == 0 && len(k.Keys) > 0 {
				k.Replace = Replaced
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 90000).Draw(r, "seconds")) * time.Second)
			n, wait := Plan(k, true, now, secret)
			if wait <= 0 || wait > Age || len(n.Keys) < 2 || len(n.Keys) > 3 {
				r.Fatalf("%s, %v", describe(n), wait)
			}
			if n.Send != k.Send {
				told = append(told, n)
			}
			k = n
		}
		knows := func(k api.NetworkKeys, id uint32) bool {
			return slices.ContainsFunc(k.Keys, func(x api.OverlayKey) bool { return x.ID == id })
		}
		for i := 1; i < len(told); i++ {
			if a, b := told[i-1], told[i]; !knows(a, b.Send) || !knows(b, a.Send) {
				r.Fatalf("who has %s and who has %s do not understand each other", describe(a), describe(b))
			}
		}
	})
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
		keys := func() string {
			for c := range store.List[*api.Cluster](st.View()) {
				return describe(c.NetworkKeys)
			}
			return "none"
		}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := keys(); got != want {
				t.Errorf("%s, not %s", got, want)
			}
		}
		update(func(tx *store.Tx) error {
			c := &api.Cluster{}
			c.ID = "c"
			return store.Create(tx, c)
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- (&Loop{Store: st, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()
		expect("rest 0")
		network := func(id, encrypted string) *api.Network {
			n := &api.Network{}
			n.ID, n.Spec.Name = id, id
			n.DriverState.Options = map[string]string{api.OptionEncrypted: encrypted}
			return n
		}
		update(func(tx *store.Tx) error { return store.Create(tx, network("plain", "false")) })
		expect("rest 0")
		update(func(tx *store.Tx) error { return store.Create(tx, network("secret", "")) })
		expect("1* 2 rest 0")
		time.Sleep(Age - time.Second)
		expect("1* 2 rest 0")
		time.Sleep(time.Second)
		expect("1 2* 3 rest 0")
		time.Sleep(time.Minute)
		update(func(tx *store.Tx) error {
			for c := range store.List[*api.Cluster](tx) {
				u := *c
				u.NetworkKeys.Replace = Replaced
				return store.Put(tx, &u)
			}
			return nil
		})
		expect("2 3* 4 rest 2")
		time.Sleep(2 * spread)
		expect("4 5* 6 rest 0")
		// Another leader goes on where this one ended.
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		time.Sleep(Age + time.Hour)
		ctx, cancel = context.WithCancel(t.Context())
		go func() { ended <- (&Loop{Store: st, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()
		expect("5 6* 7 rest 0")
		update(func(tx *store.Tx) error { return store.Delete[*api.Network](tx, "secret") })
		expect("rest 0")
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
