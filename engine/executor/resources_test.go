package executor

import (
	"slices"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

// Several names of a kind share a variable, as in Docker.
func TestResourceEnv(t *testing.T) {
	named := func(kind, value string) swarm.GenericResource {
		return swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: value}}
	}
	got := resourceEnv([]swarm.GenericResource{
		named("gpu", "b"), {DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "ssd", Value: 3}}, named("gpu", "a"), {},
	})
	if want := []string{"DOCKER_RESOURCE_GPU=b,a", "DOCKER_RESOURCE_SSD=3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
