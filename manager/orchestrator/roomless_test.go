package orchestrator

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// TestRoomlessUpdate: an update of tasks that never had room goes on as soon as it is
// told that the new ones have none either, and waits for nothing else.
func TestRoomlessUpdate(t *testing.T) {
	for name, mode := range map[string]swarm.ServiceMode{
		"global":     {Global: &swarm.GlobalService{}},
		"replicated": {Replicated: &swarm.ReplicatedService{Replicas: new(uint64(3))}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { roomlessUpdate(t, mode) })
		})
	}
}

func roomlessUpdate(t *testing.T, mode swarm.ServiceMode) {
	st, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	update := func(fn func(tx *store.Tx) error) {
		t.Helper()
		if _, err := st.Update(t.Context(), fn); err != nil {
			t.Fatal(err)
		}
	}
	update(func(tx *store.Tx) error {
		for i := range 3 {
			n := &api.Node{}
			n.ID, n.Status.State, n.Spec.Availability = fmt.Sprint("n", i), swarm.NodeStateReady, swarm.NodeAvailabilityActive
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		o := &api.Service{SpecVersion: 1}
		o.ID, o.Spec.Name, o.Spec.Mode = "web", "web", mode
		o.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "a"}
		return store.Create(tx, o)
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = (&Loop{Store: st, Log: slog.New(slog.DiscardHandler)}).Run(ctx) }()

	began := time.Now()
	// refuse says of all new tasks, one after the other, that there is no room for them.
	refuse := func() {
		for range 10 {
			synctest.Wait()
			for task := range store.List[*api.Task](st.View()) {
				if task.Status.Err == "" {
					c := *task
					c.Status.Err = "no address is left"
					update(func(tx *store.Tx) error { return store.Put(tx, &c) })
					break
				}
			}
		}
	}
	refuse()
	update(func(tx *store.Tx) error {
		o := *store.Get[*api.Service](tx, "web")
		o.SpecVersion, o.Spec.TaskTemplate.ContainerSpec = 2, &swarm.ContainerSpec{Image: "b"}
		return store.Put(tx, &o)
	})
	refuse()
	fresh := 0
	for task := range store.List[*api.Task](st.View()) {
		if task.SpecVersion == 2 && !api.ToldToEnd(task.DesiredState) {
			fresh++
		}
	}
	o := store.Get[*api.Service](st.View(), "web")
	if o.UpdateStatus == nil || o.UpdateStatus.State != swarm.UpdateStateCompleted || fresh != 3 || time.Since(began) > 0 {
		t.Errorf("after %s %d tasks are of the new version, and the update is %+v", time.Since(began), fresh, o.UpdateStatus)
	}
}
