package dockerapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// The parts of a task are the task: same fields, tags and order.
func TestTaskParts(t *testing.T) {
	names := func(v any) (all []string) {
		rt := reflect.TypeOf(v)
		for i := range rt.NumField() {
			f := rt.Field(i)
			all = append(all, f.Name+" "+f.Type.String()+" "+string(f.Tag))
		}
		return all
	}
	var got []string
	got = append(got, names(taskHead{})...)
	got = append(got, "Spec swarm.TaskSpec json:\",omitempty\"")
	got = append(got, names(taskTail{})...)
	if d := cmp.Diff(names(swarm.Task{}), got); d != "" {
		t.Error(d)
	}
	// keyOf must look at every field of a spec.
	if n, m := reflect.TypeFor[swarm.TaskSpec]().NumField(), reflect.TypeFor[specKey]().NumField()-1; n != m {
		t.Errorf("TaskSpec has %d fields, specKey covers %d", n, m)
	}
}

func TestTaskEncoder(t *testing.T) {
	specs := []swarm.TaskSpec{
		{},
		{ContainerSpec: &swarm.ContainerSpec{Image: "a<b>&c", Env: []string{"A=\"1\""}}},
		{Networks: []swarm.NetworkAttachmentConfig{{Target: "n"}}, ForceUpdate: 2, Placement: &swarm.Placement{Constraints: []string{"x==y"}}},
	}
	f := newFake()
	s := newServer(t, f)
	rapid.Check(t, func(t *rapid.T) {
		tasks := make([]swarm.Task, rapid.IntRange(0, 9).Draw(t, "n"))
		for i := range tasks {
			tasks[i] = swarm.Task{
				ID:           rapid.String().Draw(t, "id"),
				Annotations:  swarm.Annotations{Name: rapid.SampledFrom([]string{"", "x"}).Draw(t, "name")},
				Spec:         rapid.SampledFrom(specs).Draw(t, "spec"),
				ServiceID:    rapid.SampledFrom([]string{"", "s"}).Draw(t, "service"),
				Slot:         rapid.IntRange(0, 2).Draw(t, "slot"),
				DesiredState: rapid.SampledFrom([]swarm.TaskState{"", swarm.TaskStateRunning}).Draw(t, "desired"),
			}
			if rapid.Bool().Draw(t, "net") {
				tasks[i].NetworksAttachments = []swarm.NetworkAttachment{{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}}}
			}
		}
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		shown := slices.Clone(tasks)
		for i := range shown {
			shown[i].Spec = shownTaskSpec(shown[i].Spec)
		}
		if err := enc.Encode(shown); err != nil {
			t.Fatal(err)
		}
		f.extra = tasks
		w := do(s, "GET /tasks", "", nil)
		if d := cmp.Diff(b.String(), w.Body.String()); d != "" {
			t.Fatal(d)
		}
	})
}

func benchTasks(n int) []swarm.Task {
	all := make([]swarm.Task, n)
	nets := []swarm.NetworkAttachment{{
		Network:   swarm.Network{ID: "net1", Spec: swarm.NetworkSpec{Annotations: swarm.Annotations{Name: "ingress"}, DriverConfiguration: &swarm.Driver{Name: "overlay"}}},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
	}}
	delay := time.Second
	for i := range all {
		t := testTask()
		t.CreatedAt, t.UpdatedAt = time.Now(), time.Now()
		t.NetworksAttachments = nets
		if i%500 != 0 {
			t.Spec = all[i-1].Spec
		} else {
			t.Spec.ContainerSpec.Env = []string{"A=1", "B=2", "C=3"}
			t.Spec.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay}
			t.Spec.Placement = &swarm.Placement{Constraints: []string{"node.role==worker"}, Platforms: []swarm.Platform{{Architecture: "amd64", OS: "linux"}}}
		}
		all[i] = t
	}
	return all
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func benchGet(b *testing.B, f *fake, path string) {
	s := newServer(b, f)
	r, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, path, http.NoBody)
	b.ReportAllocs()
	for b.Loop() {
		s.ServeHTTP(discard{http.Header{}}, r)
	}
}

func BenchmarkTasks10000(b *testing.B) {
	f := newFake()
	f.extra = benchTasks(10_000)
	benchGet(b, f, "/tasks")
}

func BenchmarkTasks300(b *testing.B) {
	f := newFake()
	f.extra = benchTasks(300)
	benchGet(b, f, "/tasks")
}

// What encoding the list in one piece costs.
func BenchmarkTasks10000Plain(b *testing.B) {
	all := benchTasks(10_000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(all); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkServices200(b *testing.B) {
	f := newFake()
	for range 200 {
		f.services = append(f.services, testService())
	}
	benchGet(b, f, "/services?status=true")
}

func BenchmarkPing(b *testing.B) { benchGet(b, newFake(), "/v1.50/_ping") }

func TestLongListsAreChunked(t *testing.T) {
	f := newFake()
	f.extra = benchTasks(2000)
	w := do(newServer(t, f), "GET /tasks", "", nil)
	var back []swarm.Task
	if err := json.Unmarshal(w.Body.Bytes(), &back); err != nil || len(back) != 2000 || !strings.HasSuffix(w.Body.String(), "]\n") {
		t.Errorf("%d tasks, %v", len(back), err)
	}
}
