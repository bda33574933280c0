package dockerapi

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
)

// What Docker shows though nobody said it, with every way to ask.
func TestShown(t *testing.T) {
	s := newServer(t, newFake())
	for _, c := range []struct{ request, want string }{
		{"GET /nodes", `"Spec":{"Labels":{},`},
		{"GET /nodes/self", `"Spec":{"Labels":{},`},
		{"GET /swarm", `"Spec":{"Labels":{},`},
		{"GET /configs/c", `"Labels":{}`},
		{"GET /secrets/s", `"Labels":{}`},
		{"GET /services", `"Runtime":"container"`},
		{"GET /services/web", `"Isolation":"default"`},
		{"GET /tasks", `"Isolation":"default"`},
		{"GET /tasks/" + taskID, `"Isolation":"default"`},
	} {
		if w := do(s, c.request, "", nil); !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: no %s in %s", c.request, c.want, w.Body)
		}
	}
}

// A spec that comes back as it was shown is the spec that is stored.
func TestShownAndSentBack(t *testing.T) {
	stored := testService().Spec
	sent := stored
	shownServiceSpec(&sent)
	if sent.TaskTemplate.Runtime != swarm.RuntimeContainer || stored.TaskTemplate.ContainerSpec.Isolation != "" {
		t.Errorf("shown %+v of %+v", sent.TaskTemplate, stored.TaskTemplate)
	}
	unsaid(&sent)
	if d := cmp.Diff(stored, sent); d != "" {
		t.Error(d)
	}
}
