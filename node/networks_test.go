package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/events"
	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/networktest"
)

// told are containers' networks that only note what is published.
type told []string

func (told) NetworkConnect(context.Context, string, string, *dnet.EndpointSettings) error { return nil }

func (told) NetworkDisconnect(context.Context, string, string, bool) error { return nil }

func (told) ContainerName(id string) string { return map[string]string{"c1": "web"}[id] }

func (l *told) Emit(_ events.Type, action events.Action, _ string, a map[string]string) {
	*l = append(*l, strings.TrimSpace(string(action)+" "+a["name"]+" "+a["type"]))
}

// TestNodeNetworks: who follows events sees this node's own networks come and go, and
// inspect names the containers in one.
func TestNodeNetworks(t *testing.T) {
	local, err := network.New(t.Context(), network.Options{
		Dataplane: networktest.NewFake(), Dir: t.TempDir(), RuntimeDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var l told
	n := networks{local: local, containers: &l, swarm: func() (swarmNetworks, error) { return nil, errLocked }}
	if _, err := n.NetworkCreate(ctx, &dnet.CreateRequest{Name: "o", Driver: "overlay"}); !errors.Is(err, errLocked) {
		t.Errorf("an overlay on a manager that is locked: %v", err)
	}
	for _, q := range []dnet.CreateRequest{{Name: "a"}, {Name: "b"}, {Name: "c", ConfigOnly: true}, {Name: "a"}} {
		if _, err := n.NetworkCreate(ctx, &q); (err != nil) != (q.Name == "a" && len(l) == 3) {
			t.Error(err)
		}
	}
	for _, name := range []string{"a", "c", "bridge"} {
		if err := n.NetworkRemove(ctx, name); (err != nil) != (name == "bridge") {
			t.Error(err)
		}
	}
	if _, err := n.NetworkPrune(ctx, nil); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"c1", "c2"} {
		if _, err := local.Join(ctx, id, map[string]*dnet.EndpointSettings{"bridge": {}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if in, err := n.NetworkInspect(ctx, "bridge", "", false); err != nil || in.Containers["c1"].Name != "web" || in.Containers["c2"].Name != "c2" {
		t.Errorf("%+v, %v", in, err)
	}
	want := []string{"create a bridge", "create b bridge", "create c null", "destroy a bridge", "destroy c null", "destroy b bridge", "prune"}
	if !slices.Equal(l, want) {
		t.Errorf("events %q, want %q", l, want)
	}
}
