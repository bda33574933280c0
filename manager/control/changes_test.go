package control

import (
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

func TestChanges(t *testing.T) {
	was := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(2))}}}
	was.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "a:1", Args: []string{"x"}}
	is := was
	is.Labels = map[string]string{"team.io/x": "web"}
	is.UpdateConfig = &swarm.UpdateConfig{Monitor: 5 * time.Second, Parallelism: 2}
	is.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(3))}
	is.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "a:2"}
	want := []string{
		"label team.io/x + web", "replicas 2 → 3", `args - ["x"]`, "image a:1 → a:2", "update.monitor + 5s", "update.parallelism + 2",
	}
	if got := changes(&was, &is); !slices.Equal(got, want) {
		t.Errorf("have %q\nwant %q", got, want)
	}
	if got := changes(&is, &is); len(got) != 0 {
		t.Errorf("of nothing: %q", got)
	}
}
