package dispatcher

import (
	"slices"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func TestOwnNames(t *testing.T) {
	task := func(hostname string, aliases ...string) *api.Task {
		return &api.Task{
			ID: "t1", ServiceID: "s1", Slot: 3, Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Hostname: hostname}}},
			Networks: []api.NetworkAttachment{{NetworkID: "net", Aliases: aliases}},
		}
	}
	node := func(hostname string) *api.Node {
		n := &api.Node{}
		n.Description.Hostname = hostname
		return n
	}
	var o ownNames
	check := func(x *api.Task, n *api.Node, want ...string) {
		t.Helper()
		if got := o.of(x, &x.Networks[0], n); !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	check(task(""), nil)
	check(task("web", "all"), nil, "web")
	if o.expanded != nil {
		t.Error("nothing was expanded")
	}
	both := task("{{.Node.Hostname}}", "all", "slot-{{.Task.Slot}}")
	check(both, nil, "", "slot-3")
	check(both, node("a"), "a", "slot-3")
	was := o.expanded[nameKey{"t1", "net"}]
	check(both, node("a"), "a", "slot-3")
	if o.expanded[nameKey{"t1", "net"}] != was {
		t.Error("expanded once more")
	}
	check(both, node("b"), "b", "slot-3")
	check(task("{{.Node.Hostname}}"), node("b"), "b")
	check(task("{{.Nothing}}", "{{.Task.Slot}}"), node("b"), "3")
	if len(o.expanded) != 0 {
		t.Error("what failed is kept:", o.expanded)
	}

	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if got := o.of(both, &both.Networks[0], node("c")); !slices.Equal(got, []string{"c", "slot-3"}) {
				t.Errorf("%q", got)
			}
		})
	}
	wait.Wait()

	o.expanded = map[nameKey]*expandedNames{}
	for i := range maxOwnNames {
		o.expanded[nameKey{task: string(rune(i + 1))}] = was
	}
	check(both, node("d"), "d", "slot-3")
	if len(o.expanded) != 1 {
		t.Error(len(o.expanded), "are kept")
	}
}
