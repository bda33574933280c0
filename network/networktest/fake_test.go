package networktest_test

import (
	"strconv"
	"testing"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

func TestFake(t *testing.T) {
	networktest.Dataplane(t, func(*testing.T) *networktest.Harness {
		f := networktest.NewFake()
		return &networktest.Harness{
			Plane: f, Reopen: func() network.Dataplane { return f }, Observe: f.There, Occupy: f.Occupy, Damage: f.Damage, Ask: f.Ask,
			Identity: func(id string) string { return strconv.Itoa(f.Made(id)) },
		}
	})
}
