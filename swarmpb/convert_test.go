package swarmpb_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// fill sets v to an arbitrary value in normal form: values that mean the same
// ("" and the default, nil and 0 attempts) appear in the form that comes back.
func fill(t *rapid.T, v reflect.Value) {
	if o, ok := one(t, v.Interface()); ok {
		v.Set(reflect.ValueOf(o).Convert(v.Type()))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Slice:
		n := rapid.IntRange(0, 2).Draw(t, "len")
		if n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
		}
		for i := range n {
			e := v.Index(i)
			if e.Kind() == reflect.Pointer {
				e.Set(reflect.New(e.Type().Elem()))
				e = e.Elem()
			}
			fill(t, e)
		}
	case reflect.Map:
		if v.Type().Elem().Kind() != reflect.String {
			return
		}
		if rapid.Bool().Draw(t, "map") {
			v.Set(reflect.ValueOf(map[string]string{"k": rapid.String().Draw(t, "v")}).Convert(v.Type()))
		}
	case reflect.String:
		v.SetString(rapid.String().Draw(t, "string"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int, reflect.Int32:
		v.SetInt(int64(rapid.Int32().Draw(t, "int")))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "int64"))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64Min(1).Draw(t, "uint64"))
	case reflect.Uint32:
		v.SetUint(uint64(rapid.Uint32().Draw(t, "uint32")))
	case reflect.Uint8:
		v.SetUint(uint64(rapid.Byte().Draw(t, "byte")))
	default:
		panic(fmt.Sprintf("no generator for %s", v.Type()))
	}
}

func pick[T any](t *rapid.T, of ...T) (any, bool) { return rapid.SampledFrom(of).Draw(t, "enum"), true }

// one draws a value of types that have few, or a form of their own.
func one(t *rapid.T, v any) (any, bool) {
	switch v.(type) {
	case time.Duration:
		return time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "duration")), true
	case time.Time:
		return time.Unix(rapid.Int64Range(1, 4e9).Draw(t, "seconds"), 5).UTC(), true
	case os.FileMode:
		return os.FileMode(rapid.Uint32Range(0, 0o7777).Draw(t, "mode")), true
	case netip.Addr:
		return pick(t, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"))
	case netip.Prefix:
		return pick(t, netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64"))
	case mount.Type:
		return pick(t, mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe, mount.TypeCluster, mount.TypeImage)
	case mount.Consistency:
		return pick(t, "", mount.ConsistencyFull, mount.ConsistencyCached, mount.ConsistencyDelegated)
	case mount.Propagation:
		return pick(t, mount.Propagations...)
	case container.Isolation:
		return pick(t, "", container.IsolationProcess, container.IsolationHyperV)
	case swarm.SeccompMode:
		return pick(t, swarm.SeccompModeDefault, swarm.SeccompModeUnconfined, swarm.SeccompModeCustom)
	case swarm.AppArmorMode:
		return pick(t, swarm.AppArmorModeDefault, swarm.AppArmorModeDisabled)
	case swarm.RestartPolicyCondition:
		return pick(t, swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny)
	case swarm.ResolutionMode:
		return pick(t, swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR)
	case swarm.PortConfigPublishMode:
		return pick(t, swarm.PortConfigPublishModeIngress, swarm.PortConfigPublishModeHost)
	case network.IPProtocol:
		return pick(t, network.TCP, network.UDP, network.SCTP)
	case swarm.NodeRole:
		return pick(t, swarm.NodeRoleWorker, swarm.NodeRoleManager)
	case swarm.NodeAvailability:
		return pick(t, swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain)
	case swarm.NodeState:
		return pick(t, swarm.NodeStateUnknown, swarm.NodeStateDown, swarm.NodeStateReady, swarm.NodeStateDisconnected)
	case api.CertificateState:
		return pick(t, "", api.CertificatePending, api.CertificateIssued, api.CertificateRenew, api.CertificateRotate, api.CertificateFailed)
	case swarm.TaskState:
		return pick(t, swarm.TaskStateNew, swarm.TaskStateAssigned, swarm.TaskStateRunning, swarm.TaskStateFailed, swarm.TaskStateOrphaned)
	case swarm.GenericResource:
		return pick(t,
			swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "GPU", Value: "0"}},
			swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "SSD", Value: 3}})
	case swarm.CredentialSpec:
		return pick(t, swarm.CredentialSpec{Config: "c"}, swarm.CredentialSpec{File: "f"}, swarm.CredentialSpec{Registry: "r"})
	case swarm.ConfigReference:
		return pick(t,
			swarm.ConfigReference{ConfigID: "i", File: &swarm.ConfigReferenceFileTarget{Name: "n", Mode: 0o444}},
			swarm.ConfigReference{ConfigID: "i", Runtime: &swarm.ConfigReferenceRuntimeTarget{}})
	case *swarm.ManagerStatus:
		return (*swarm.ManagerStatus)(nil), true // never on the wire
	}
	return nil, false
}

// wire sends a message through the encoder, as it would travel.
func wire[M proto.Message](t *rapid.T, m M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out.(M)
}

func same[T any](t *rapid.T, got, want T) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Fatalf("came back different (-sent +got):\n%s", d)
	}
}

func TestTaskRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		task := &api.Task{Spec: &api.TaskSpec{}}
		fill(t, reflect.ValueOf(task).Elem())
		task.NotBefore, task.Evicted, task.MovedFrom, task.Ran = time.Time{}, "", "", 0 // for managers only
		if task.Spec == nil {
			task.Spec = &api.TaskSpec{}
		}
		task.Spec.Container = nil // as well
		task.Slot = max(task.Slot, 0)
		normalize(task.Spec)
		networks := map[string]*api.Network{}
		m := wire(t, swarmpb.NewTask(task, swarmpb.NewTaskSpec(task.Spec), func(id string) *api.Network { return networks[id] }))
		same(t, m.API(), task)
	})
}

// normalize leaves one of the kinds of work that a task can be.
func normalize(s *api.TaskSpec) {
	switch {
	case s.ContainerSpec != nil:
		s.Runtime, s.PluginSpec, s.NetworkAttachmentSpec = swarm.RuntimeContainer, nil, nil
	case s.NetworkAttachmentSpec != nil:
		s.Runtime, s.PluginSpec = swarm.RuntimeNetworkAttachment, nil
	case s.PluginSpec != nil:
		s.Runtime = swarm.RuntimePlugin
	default:
		s.Runtime = ""
	}
	if s.ContainerSpec == nil {
		s.RegistryAuth = ""
		if s.Resources != nil && s.Resources.Limits != nil {
			s.Resources.Limits.Pids = 0
		}
	}
}

func TestObjectsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		node := &api.Node{}
		fill(t, reflect.ValueOf(node).Elem())
		node.DataAddr, node.Ingress, node.IngressNetwork = "", nil, ""                                                   // told by the endpoint stream
		node.Session, node.DownSince, node.Certificate.Waiting, node.SpecFrom = api.NodeSession{}, time.Time{}, false, 0 // for managers only
		same(t, wire(t, swarmpb.NewNode(node)).API(), node)
		secret := &api.Secret{}
		fill(t, reflect.ValueOf(secret).Elem())
		same(t, wire(t, swarmpb.NewSecret(secret)).API(), secret)
		config := &api.Config{}
		fill(t, reflect.ValueOf(config).Elem())
		same(t, wire(t, swarmpb.NewConfig(config)).API(), config)
		net := &api.Network{}
		fill(t, reflect.ValueOf(net).Elem())
		net.Reserved = nil // for managers only
		same(t, wire(t, swarmpb.NewNetwork(net)).API(), net)
	})
}

// Whatever another machine sends, converting it does not panic.
func FuzzConvert(f *testing.F) {
	task := &api.Task{ID: "t", Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "i"}}}}
	seed, err := proto.Marshal(swarmpb.NewTask(task, swarmpb.NewTaskSpec(task.Spec), func(string) *api.Network { return nil }))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &swarmpb.Task{}
		if proto.Unmarshal(b, m) == nil {
			m.API()
			m.Attached()
		}
		n := &swarmpb.Node{}
		if proto.Unmarshal(b, n) == nil {
			n.API()
		}
		d := &swarmpb.NodeDescription{}
		if proto.Unmarshal(b, d) == nil {
			d.API()
		}
	})
}

func TestNilMessages(*testing.T) {
	(*swarmpb.Task)(nil).API()
	(*swarmpb.Node)(nil).API()
	(*swarmpb.Secret)(nil).API()
	(*swarmpb.Config)(nil).API()
	(*swarmpb.Network)(nil).API()
	(*swarmpb.TaskStatus)(nil).API()
	(*swarmpb.NodeDescription)(nil).API()
}

func TestStatusTextIsMadeFit(t *testing.T) {
	m := swarmpb.NewTaskStatus(&swarm.TaskStatus{Err: "exec: \xff\xfe"})
	if _, err := proto.Marshal(m); err != nil {
		t.Error(err)
	}
}

func TestMergeLogs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sources []func(context.Context, func(*swarmpb.LogMessage) error) error
		total := 0
		for range rapid.IntRange(0, 5).Draw(t, "sources") {
			times := rapid.SliceOf(rapid.Int64Range(0, 50)).Draw(t, "steps")
			total += len(times)
			sources = append(sources, func(_ context.Context, emit func(*swarmpb.LogMessage) error) error {
				at := int64(0)
				for _, step := range times {
					at += step
					if err := emit(&swarmpb.LogMessage{Timestamp: &timestamppb.Timestamp{Seconds: at}}); err != nil {
						return err
					}
				}
				return nil
			})
		}
		var got []int64
		err := swarmpb.MergeLogs(context.Background(), sources, func(m *swarmpb.LogMessage) error {
			if n := len(got); n > 0 && got[n-1] > m.Timestamp.Seconds {
				t.Fatalf("%d after %d", m.Timestamp.Seconds, got[n-1])
			}
			got = append(got, m.Timestamp.Seconds)
			return nil
		})
		if err != nil || len(got) != total {
			t.Fatalf("got %d of %d messages, %v", len(got), total, err)
		}
	})
}
