package allocator

import (
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
)

// What is due is who waits, no more than can be served, and whoever leaves is not.
func TestWaiters(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w, want := newWaiters(), map[string]string{}
		for range rapid.IntRange(1, 300).Draw(rt, "steps") {
			id, net := fmt.Sprint(rapid.IntRange(0, 20).Draw(rt, "id")), rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "network")
			switch rapid.IntRange(0, 4).Draw(rt, "step") {
			case 0, 1:
				w.add(net, id)
				want[id] = net
			case 2:
				w.remove(id)
				delete(want, id)
			case 3:
				n := uint64(rapid.IntRange(0, 5).Draw(rt, "free"))
				waiting := uint64(0)
				for _, of := range want {
					if of == net {
						waiting++
					}
				}
				due := w.due(func(of string) uint64 {
					if of == net {
						return n
					}
					return 0
				})
				if uint64(len(due)) != min(n, waiting) {
					rt.Fatalf("%d are due of %d that wait, with room for %d", len(due), waiting, n)
				}
				for _, id := range due {
					if want[id] != net {
						rt.Fatalf("%s is due in %s, and waits for %q", id, net, want[id])
					}
					delete(want, id)
				}
			case 4:
				for _, l := range w.lines {
					if len(l.order) > 2*l.live+minGap+1 {
						rt.Fatalf("a line of %d has %d entries", l.live, len(l.order))
					}
				}
			}
		}
		if len(w.of) != len(want) || len(w.all()) != len(want) || len(w.lines) != 0 {
			rt.Fatalf("%v wait, want %v", w.of, want)
		}
	})
}

// Those that wait get what becomes free, whoever is in front of them and has given up.
func TestTasksWaitForAFullNetwork(t *testing.T) {
	s := startLoop(t)
	s.network(newNetwork("n", subnet("10.1.0.0/28"))) // room for 13
	const all = 40
	s.update(func(tx *store.Tx) error {
		for i := range all {
			if err := store.Create(tx, newTask(fmt.Sprintf("t%02d", i), "n")); err != nil {
				return err
			}
		}
		return nil
	})
	in := func(v *store.View, state swarm.TaskState) (ids []string) {
		for o := range store.List[*api.Task](v) {
			if o.Status.State == state && (state != swarm.TaskStateNew || o.Status.Err != "") {
				ids = append(ids, o.ID)
			}
		}
		return ids
	}
	s.until(func(v *store.View) bool {
		return len(in(v, swarm.TaskStatePending)) == 13 && len(in(v, swarm.TaskStateNew)) == all-13
	})
	for len(in(s.View(), swarm.TaskStateNew)) > 0 {
		left := len(in(s.View(), swarm.TaskStateNew))
		s.update(func(tx *store.Tx) error { // one that waits gives up, another leaves its place
			o := *store.Get[*api.Task](tx, in(s.View(), swarm.TaskStateNew)[0])
			o.DesiredState = swarm.TaskStateShutdown
			if err := store.Put(tx, &o); err != nil {
				return err
			}
			return store.Delete[*api.Task](tx, in(s.View(), swarm.TaskStatePending)[0])
		})
		s.until(func(v *store.View) bool {
			n := 0
			for _, id := range in(v, swarm.TaskStateNew) {
				if store.Get[*api.Task](v, id).DesiredState != swarm.TaskStateShutdown {
					n++
				}
			}
			return n == max(0, left-2) || len(in(v, swarm.TaskStatePending)) == 13
		})
		s.update(func(tx *store.Tx) error {
			for o := range store.List[*api.Task](tx) {
				if o.DesiredState == swarm.TaskStateShutdown {
					if err := store.Delete[*api.Task](tx, o.ID); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if left == 1 {
			break
		}
	}
}

func TestServicesWaitForAFullNetwork(t *testing.T) {
	s := startLoop(t)
	s.network(newNetwork("n", subnet("10.1.0.0/29"))) // room for 5
	put := func(id string) {
		o := service(id)
		o.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "n"}}
		s.update(func(tx *store.Tx) error { return store.Create(tx, o) })
	}
	have := func(v *store.View) (n int) {
		for o := range store.List[*api.Service](v) {
			n += len(o.Endpoint.VirtualIPs)
		}
		return n
	}
	for i := range 7 {
		put(fmt.Sprint("s", i))
	}
	s.until(func(v *store.View) bool { return have(v) == 5 })
	gone := 0
	for o := range store.List[*api.Service](s.View()) {
		if len(o.Endpoint.VirtualIPs) > 0 && gone < 2 {
			s.update(func(tx *store.Tx) error { return store.Delete[*api.Service](tx, o.ID) })
			gone++
		}
	}
	s.until(func(v *store.View) bool { return have(v) == 5 && store.Count[*api.Service](v) == 5 })
}
