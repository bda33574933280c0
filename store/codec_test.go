package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// fillAny gives every field that can be reached a value of its own, so that a
// field which an encoding forgets is noticed.
func fillAny(v reflect.Value, rng *rand.Rand, depth int) {
	if depth > 12 {
		return
	}
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(rng.Int64N(1<<32), rng.Int64N(1e9)).UTC()))
		return
	case netip.Prefix:
		v.Set(reflect.ValueOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rng.Uint32()), 0, 1}), 24)))
		return
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, byte(rng.Uint32()), 0, 1})))
		return
	case swarm.TaskState:
		s, _ := api.StateOfRank(512)
		v.Set(reflect.ValueOf(s))
		return
	case json.RawMessage:
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(strings.Repeat(string(rune('a'+rng.IntN(26))), 1+rng.IntN(9)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1 + rng.Int64N(100))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + rng.Uint64N(100))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillAny(v.Elem(), rng, depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillAny(v.Index(i), rng, depth+1)
		}
	case reflect.Array:
		for i := range v.Len() {
			fillAny(v.Index(i), rng, depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillAny(key, rng, depth+1)
		fillAny(value, rng, depth+1)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fillAny(v.Field(i), rng, depth+1)
			}
		}
	}
}

var same = []cmp.Option{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})}

// TestNothingIsForgotten encodes and decodes objects with every field set.
func TestNothingIsForgotten(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, o := range []any{new(api.Cluster), new(api.Node), new(api.Service), new(api.Task), new(api.Network), new(api.Secret), new(api.Config)} {
		fillAny(reflect.ValueOf(o).Elem(), rng, 0)
		body, err := encodeObject(o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeObject(kindOfAny(o), body, &intern{})
		if err != nil {
			t.Fatal(err)
		}
		if task, ok := o.(*api.Task); ok {
			task.Spec = nil // it goes another way
		}
		if d := cmp.Diff(o, got, same...); d != "" {
			t.Errorf("%T (-want +got):\n%s", o, d)
		}
	}
	spec := new(api.TaskSpec)
	fillAny(reflect.ValueOf(spec).Elem(), rng, 0)
	body, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeSpec("k", body)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(spec, got, same...); d != "" {
		t.Errorf("spec (-want +got):\n%s", d)
	}
}

// TestNewerVersionsAreRefused has entries that only a later version can write.
func TestNewerVersionsAreRefused(t *testing.T) {
	task := &api.Task{ID: "t", ServiceID: "s"}
	body, err := appendTask(nil, task)
	if err != nil {
		t.Fatal(err)
	}
	newTask := bytes.Clone(body)
	newTask[0]++
	longTask := append(bytes.Clone(body), 1)
	for name, e := range map[string][]byte{
		"entry format": {format + 1, 0, 0},
		"operation":    {format, 0, 1, 9, 0, 0, 0, 0},
		"kind":         {format, 0, 1, opDelete, byte(KindServiceVersion + 1), 1, 'x'},
		"field":        (&entry{ops: []op{{code: opPut, kind: KindService, body: []byte(`{"ID":"x","Hologram":1}`)}}}).encode(),
		"spec field":   (&entry{ops: []op{{code: opSpec, id: "s/0", body: []byte(`{"Hologram":1}`)}, {code: opPut, kind: KindTask, body: body}}}).encode(),
		"task format":  (&entry{ops: []op{{code: opPut, kind: KindTask, body: newTask}}}).encode(),
		"task tail":    (&entry{ops: []op{{code: opPut, kind: KindTask, body: longTask}}}).encode(),
		"tail":         append((&entry{}).encode(), 7),
	} {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		result, fatal := s.Apply(1, e)
		if result != nil || !errors.Is(fatal, errMalformed) {
			t.Errorf("%s: %v, %v; want a fatal error", name, result, fatal)
		}
		if s.View().Index() != 0 {
			t.Errorf("%s: something was applied", name)
		}
	}
}

func FuzzApply(f *testing.F) {
	task, err := appendTask(nil, &api.Task{ID: "t", ServiceID: "s", Networks: []api.NetworkAttachment{{NetworkID: "n", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Aliases: []string{"web"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add((&entry{reads: []read{{ref{KindService, "x"}, 3}}, ops: []op{{code: opDelete, kind: KindService, id: "x"}}}).encode())
	f.Add((&entry{ops: []op{{code: opSpec, id: "s/0", body: []byte(`{"ServiceName":"web"}`)}, {code: opPut, kind: KindTask, body: task}}}).encode())
	f.Add((&entry{ops: []op{{code: opPut, kind: KindService, body: []byte(`{"ID":"x"}`)}}}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		result, fatal := s.Apply(1, b)
		if fatal != nil && result != nil {
			t.Fatal("both a result and a fatal error")
		}
		if fatal == nil && result == nil {
			roundTrip(t, s)
		}
	})
}

func FuzzRestore(f *testing.F) {
	s, err := NewLocal(Config{})
	if err != nil {
		f.Fatal(err)
	}
	fill(f, s, 3)
	var b bytes.Buffer
	if err := s.Snapshot()(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		if s.Restore(bytes.NewReader(b)) == nil {
			roundTrip(t, s)
		}
	})
}

func FuzzTask(f *testing.F) {
	b, err := appendTask(nil, &api.Task{ID: "t", Status: swarm.TaskStatus{Timestamp: time.Unix(1, 2), ContainerStatus: &swarm.ContainerStatus{PID: 4}}, Ports: []swarm.PortConfig{{TargetPort: 80}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		task, err := decodeTask(b, nil)
		if err != nil {
			return
		}
		again, err := appendTask(nil, task)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeTask(again, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(task, got, same...); d != "" {
			t.Fatal(d)
		}
	})
}

// roundTrip checks that a snapshot gives an equal store, and the same bytes.
func roundTrip(t testing.TB, s *Store) {
	t.Helper()
	var a, b bytes.Buffer
	if err := s.Snapshot()(&a); err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Restore(bytes.NewReader(a.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := r.Snapshot()(&b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Fatal("the snapshot of a restored store differs")
	}
	if d := cmp.Diff(contents(s.View()), contents(r.View()), same...); d != "" {
		t.Fatal(d)
	}
	if !reflect.DeepEqual(s.refs, r.refs) {
		t.Fatalf("references %v, %v", s.refs, r.refs)
	}
}

// contents is everything in a view.
func contents(v *View) map[Kind][]any {
	all := map[Kind][]any{}
	for k := KindCluster; k.valid(); k++ {
		for o := range v.list(k, ByIDPrefix("")) {
			all[k] = append(all[k], o)
		}
	}
	return all
}
