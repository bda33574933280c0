package control

import (
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
)

type fixture struct {
	*Control
	t     testing.TB
	store *store.Store
}

func hostRoutes(context.Context) ([]netip.Prefix, error) {
	return []netip.Prefix{netip.MustParsePrefix("10.200.7.0/24")}, nil
}

func setUp(t testing.TB) *fixture {
	t.Helper()
	s, err := store.NewLocal(store.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, store: s, Control: New(Config{Store: s, Routes: hostRoutes})}
	f.write(func(tx *store.Tx) error {
		c := &api.Cluster{JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-w", Manager: "SWMTKN-m"}}
		c.ID, c.Spec.Name = "cluster", "default"
		c.RootCA = testRoot(t)
		return store.Create(tx, c)
	})
	f.write(func(tx *store.Tx) error {
		n, err := Ingress(&api.Cluster{ClusterInfo: swarm.ClusterInfo{DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, SubnetSize: 24}})
		if err != nil {
			return err
		}
		return store.Create(tx, n)
	})
	for _, name := range []string{"bridge", "host", "none"} {
		f.write(func(tx *store.Tx) error {
			n := &api.Network{Predefined: true}
			n.ID, n.Spec.Name = "id-of-"+name, name
			return store.Create(tx, n)
		})
	}
	return f
}

func (f *fixture) write(fn func(tx *store.Tx) error) {
	f.t.Helper()
	if _, err := f.store.Update(f.t.Context(), fn); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) node(id, name string, role swarm.NodeRole, state swarm.NodeState) {
	f.t.Helper()
	f.write(func(tx *store.Tx) error {
		n := &api.Node{Role: role}
		n.ID, n.Description.Hostname, n.Spec.Role, n.Spec.Availability, n.Status.State = id, name, role, "active", state
		return store.Create(tx, n)
	})
}

func (f *fixture) task(id string, s *swarm.Service, fn func(*api.Task)) {
	f.t.Helper()
	f.write(func(tx *store.Tx) error {
		o := store.Get[*api.Service](tx, s.ID)
		t := &api.Task{
			ID: id, ServiceID: s.ID, Slot: 1, SpecVersion: o.SpecVersion, Spec: o.TaskSpec(), DesiredState: swarm.TaskStateRunning,
			Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
		}
		fn(t)
		return store.Create(tx, t)
	})
}

func spec(name string) *swarm.ServiceSpec {
	s := &swarm.ServiceSpec{}
	s.Name = name
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	return s
}

// create makes a service and returns it; it may be changed, as service's may.
func (f *fixture) create(s *swarm.ServiceSpec) *swarm.Service {
	f.t.Helper()
	r, err := f.ServiceCreate(f.t.Context(), s, ServiceOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.service(r.ID)
}

func (f *fixture) service(name string) *swarm.Service {
	f.t.Helper()
	shared, err := f.ServiceInspect(f.t.Context(), name, false)
	if err != nil {
		f.t.Fatal(err)
	}
	body, err := json.Marshal(shared)
	if err != nil {
		f.t.Fatal(err)
	}
	s := new(swarm.Service)
	if err := json.Unmarshal(body, s); err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fixture) version(name string) uint64 {
	return store.Get[*api.Service](f.store.View(), f.service(name).ID).SpecVersion
}

// update changes a service's spec at its present version.
func (f *fixture) update(name string, o ServiceOptions, fn func(*swarm.ServiceSpec)) {
	f.t.Helper()
	s := f.service(name)
	fn(&s.Spec)
	if _, err := f.ServiceUpdate(f.t.Context(), name, s.Version.Index, &s.Spec, o); err != nil {
		f.t.Fatal(err)
	}
}

// refused checks an error's class and part of its text.
func refused(t testing.TB, err error, class api.Class, text string) {
	t.Helper()
	if !api.Is(err, class) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v (class %d), want class %d and %q", err, api.ClassOf(err), class, text)
	}
}

func TestNames(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	web := f.create(spec("web"))
	for _, name := range []string{web.ID, "web", "WEB", web.ID[:20]} {
		if s, err := f.ServiceInspect(ctx, name, false); err != nil || s.ID != web.ID {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := f.ServiceInspect(ctx, "nothere", false)
	refused(t, err, api.NotFound, "service nothere not found")
	_, err = f.ServiceInspect(ctx, "", false)
	refused(t, err, api.Invalid, "missing")
	_, err = f.ServiceCreate(ctx, spec("Web"), ServiceOptions{})
	refused(t, err, api.Exists, "name conflicts with an existing object: service web already exists")
	f.node("abc1", "same", "worker", "ready")
	f.node("abc2", "same", "worker", "ready")
	_, err = f.NodeInspect(ctx, "abc")
	refused(t, err, api.Invalid, "node abc is ambiguous (2 matches found)")
	_, err = f.NodeInspect(ctx, "same")
	refused(t, err, api.Invalid, "node same is ambiguous (2 matches found)")
}

func TestListFilters(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	a := spec("web-a")
	a.Labels = map[string]string{"team": "x", "tier": ""}
	f.create(a)
	b := spec("db")
	b.Mode.Global = &swarm.GlobalService{}
	f.create(b)
	for want, filters := range map[string]api.Filters{
		"web-a":    {"name": {"web"}},
		"db":       {"mode": {"global"}},
		"web-a db": {"runtime": {"container"}},
		"":         {"label": {"team=y"}},
	} {
		got, err := f.ServiceList(ctx, filters, false)
		if err != nil || len(got) != len(strings.Fields(want)) {
			t.Errorf("%v: %d services, %v", filters, len(got), err)
		}
	}
	if got, err := f.ServiceList(ctx, api.Filters{"label": {"team=x", "tier"}}, false); err != nil || len(got) != 1 || got[0].Spec.Name != "web-a" {
		t.Error(got, err)
	}
	nope := api.Filters{"nope": {"x"}}
	_, err := f.ServiceList(ctx, nope, false)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
	_, err = f.TaskList(ctx, nope)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
	_, err = f.TaskList(ctx, api.Filters{"desired-state": {"flying"}})
	refused(t, err, api.Invalid, "flying")
	_, err = f.NodeList(ctx, nope)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
	_, err = f.NodeList(ctx, api.Filters{"role": {"king"}})
	refused(t, err, api.Invalid, "king")
	_, err = f.SecretList(ctx, nope)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
	_, err = f.ConfigList(ctx, nope)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
	_, err = f.NetworkList(ctx, nope)
	refused(t, err, api.Invalid, "invalid filter 'nope'")
}

func TestSwarmUpdate(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	sw, err := f.SwarmInspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := sw.Spec
	s.Orchestration.TaskHistoryRetentionLimit = new(int64(2))
	if err := f.SwarmUpdate(ctx, sw.Version.Index, &s, Rotations{WorkerToken: true}); err != nil {
		t.Fatal(err)
	}
	got, _ := f.SwarmInspect(ctx)
	if *got.Spec.Orchestration.TaskHistoryRetentionLimit != 2 || !strings.HasPrefix(got.JoinTokens.Worker, "SWMTKN-1-") || got.JoinTokens.Manager != "SWMTKN-m" {
		t.Errorf("%+v", got)
	}
	refused(t, f.SwarmUpdate(ctx, sw.Version.Index, &s, Rotations{}), api.OutOfSequence, "update out of sequence")
	s.CAConfig.NodeCertExpiry = 1
	refused(t, f.SwarmUpdate(ctx, got.Version.Index, &s, Rotations{}), api.Invalid, "expiry")
}

func TestNodes(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	f.node("m", "boss", "manager", "ready")
	f.node("w", "hand", "worker", "ready")
	web := f.create(spec("web"))
	f.task("t1", web, func(t *api.Task) { t.NodeID = "w" })
	boss, _ := f.NodeInspect(ctx, "boss")
	s := boss.Spec
	s.Role = swarm.NodeRoleWorker
	refused(t, f.NodeUpdate(ctx, "boss", boss.Version.Index, &s), api.Invalid, "last manager")
	s.Role, s.Availability = swarm.NodeRoleManager, "resting"
	refused(t, f.NodeUpdate(ctx, "boss", boss.Version.Index, &s), api.Invalid, "resting")
	s.Role, s.Availability, s.Labels = "Manager", "Drain", map[string]string{"zone": "a"}
	if err := f.NodeUpdate(ctx, "boss", boss.Version.Index, &s); err != nil {
		t.Fatal(err)
	}
	if got, err := f.NodeInspect(ctx, "boss"); err != nil || got.Spec.Role != swarm.NodeRoleManager || got.Spec.Availability != swarm.NodeAvailabilityDrain {
		t.Errorf("%+v, %v", got.Spec, err)
	}
	refused(t, f.NodeUpdate(ctx, "boss", boss.Version.Index, &s), api.OutOfSequence, "out of sequence")
	drained, _ := f.NodeInspect(ctx, "boss")
	if _, err := f.store.Update(ctx, func(tx *store.Tx) error {
		n := *store.Get[*api.Node](tx, drained.ID)
		n.Status.Message = "what a manager writes is in nobody's way"
		return store.Put(tx, &n)
	}); err != nil {
		t.Fatal(err)
	}
	if err := f.NodeUpdate(ctx, "boss", drained.Version.Index, &s); err != nil {
		t.Error(err)
	}
	if got, err := f.NodeList(ctx, api.Filters{"node.label": {"zone=a"}, "membership": {"accepted"}}); err != nil || len(got) != 1 || got[0].ID != "m" {
		t.Error(got, err)
	}
	refused(t, f.NodeRemove(ctx, "boss", true), api.Invalid, "demoted")
	refused(t, f.NodeRemove(ctx, "hand", false), api.Invalid, "not down")
	if err := f.NodeRemove(ctx, "hand", true); err != nil {
		t.Fatal(err)
	}
	view := f.store.View()
	if got := store.Get[*api.Task](view, "t1"); got.Status.State != swarm.TaskStateOrphaned {
		t.Error("its task is", got.Status.State)
	}
	if c := store.Get[*api.Cluster](view, "cluster"); len(c.Removed) != 1 {
		t.Error("the node is not refused from now on:", c.Removed)
	}
}

func TestSecretsAndConfigs(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	sec := &swarm.SecretSpec{Data: []byte("x")}
	sec.Name = "key"
	id, err := f.SecretCreate(ctx, sec)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.SecretCreate(ctx, sec)
	refused(t, err, api.Exists, "secret key already exists")
	for begin, want := range map[string]int{"K": 1, "ey": 0} {
		if l, err := f.SecretList(ctx, api.Filters{"name": {begin}}); err != nil || len(l) != want {
			t.Errorf("secrets whose name begins with %s: %d, %v", begin, len(l), err)
		}
	}
	got, _ := f.SecretInspect(ctx, "key")
	if got.Spec.Data != nil {
		t.Error("a secret's data is shown")
	}
	s := spec("web")
	s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "no", SecretName: "key", File: &swarm.SecretReferenceFileTarget{Name: "key"}}}
	_, err = f.ServiceCreate(ctx, s, ServiceOptions{})
	refused(t, err, api.Invalid, "secret not found: key")
	s.TaskTemplate.ContainerSpec.Secrets[0].SecretID = id
	f.create(s)
	refused(t, f.SecretRemove(ctx, "key"), api.Invalid, "secret 'key' is in use by the following service: web")
	changed := *sec
	changed.Data = []byte("y")
	refused(t, f.SecretUpdate(ctx, "key", got.Version.Index, &changed), api.Invalid, "only updates to Labels are allowed")
	changed.Data, changed.Labels = nil, map[string]string{"a": "b"}
	if err := f.SecretUpdate(ctx, "key", got.Version.Index, &changed); err != nil {
		t.Error(err)
	}
	if err := f.ServiceRemove(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	if err := f.SecretRemove(ctx, "key"); err != nil {
		t.Error(err)
	}
	big := &swarm.ConfigSpec{Data: make([]byte, api.MaxConfigSize)}
	big.Name = "big"
	_, err = f.ConfigCreate(ctx, big)
	refused(t, err, api.Invalid, "config data must be larger than 0 and less than 1024000 bytes")
	big.Data, big.Name = big.Data[:1], "no good!"
	_, err = f.ConfigCreate(ctx, big)
	refused(t, err, api.Invalid, "invalid config name")
	big.Name = "good"
	if _, err = f.ConfigCreate(ctx, big); err != nil {
		t.Fatal(err)
	}
	if l, err := f.ConfigList(ctx, api.Filters{"names": {"good"}}); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
	if err := f.ConfigRemove(ctx, "good"); err != nil {
		t.Error(err)
	}
}

func testRoot(t testing.TB) api.RootCA {
	t.Helper()
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	return api.RootCA{Cert: root.CertPEM(), Key: key, Digest: root.Digest()}
}
