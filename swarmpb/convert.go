package swarmpb

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/moby/moby/api/types/swarm"
)

// numberOf returns the place of s in names, and 0 when it is not there: on the
// wire 0 is the default of every enumeration.
func numberOf[E ~int32, S comparable](names []S, s S) E {
	for i, n := range names {
		if n == s {
			return E(i)
		}
	}
	return 0
}

// nameOf returns the name at place e, and the zero value for an unknown number.
func nameOf[E ~int32, S any](names []S, e E) S {
	if e < 0 || int(e) >= len(names) {
		var none S
		return none
	}
	return names[e]
}

func each[A, B any](in []A, f func(A) B) []B {
	if len(in) == 0 {
		return nil
	}
	out := make([]B, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// some maps nil to nil and everything else through f.
func some[A, B any](in *A, f func(*A) *B) *B {
	if in == nil {
		return nil
	}
	return f(in)
}

func list[T any](in []T) []T {
	if len(in) == 0 {
		return nil
	}
	return in
}

func table(in map[string]string) map[string]string {
	if len(in) == 0 {
		return nil
	}
	return in
}

func newTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func apiTime(t *timestamppb.Timestamp) time.Time {
	if !t.IsValid() {
		return time.Time{}
	}
	return t.AsTime()
}

func newDuration(d *time.Duration) *durationpb.Duration {
	if d == nil {
		return nil
	}
	return durationpb.New(*d)
}

func newPeriod(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func apiDuration(d *durationpb.Duration) *time.Duration {
	if d == nil {
		return nil
	}
	v := d.AsDuration()
	return &v
}

func narrow(n int) int32 {
	return int32(min(max(n, math.MinInt32), math.MaxInt32))
}

func newVersion(index uint64) *Version { return &Version{Index: index} }

func newMeta(m *swarm.Meta) *Meta {
	return &Meta{
		Version:   newVersion(m.Version.Index),
		CreatedAt: newTime(m.CreatedAt),
		UpdatedAt: newTime(m.UpdatedAt),
	}
}

func (x *Meta) api() swarm.Meta {
	return swarm.Meta{
		Version:   swarm.Version{Index: x.GetVersion().GetIndex()},
		CreatedAt: apiTime(x.GetCreatedAt()),
		UpdatedAt: apiTime(x.GetUpdatedAt()),
	}
}

func newAnnotations(a *swarm.Annotations) *Annotations {
	return &Annotations{Name: a.Name, Labels: table(a.Labels)}
}

func (x *Annotations) api() swarm.Annotations {
	return swarm.Annotations{Name: x.GetName(), Labels: table(x.GetLabels())}
}

func newDriver(d *swarm.Driver) *Driver {
	return &Driver{Name: d.Name, Options: table(d.Options)}
}

func (x *Driver) api() *swarm.Driver {
	return &swarm.Driver{Name: x.GetName(), Options: table(x.GetOptions())}
}

func newPlatform(p *swarm.Platform) *Platform {
	return &Platform{Architecture: p.Architecture, Os: p.OS}
}

func (x *Platform) api() swarm.Platform {
	return swarm.Platform{Architecture: x.GetArchitecture(), OS: x.GetOs()}
}

func newGeneric(g swarm.GenericResource) *GenericResource {
	switch {
	case g.NamedResourceSpec != nil:
		return &GenericResource{Resource: &GenericResource_NamedResourceSpec{NamedResourceSpec: &NamedGenericResource{
			Kind: g.NamedResourceSpec.Kind, Value: g.NamedResourceSpec.Value,
		}}}
	case g.DiscreteResourceSpec != nil:
		return &GenericResource{Resource: &GenericResource_DiscreteResourceSpec{DiscreteResourceSpec: &DiscreteGenericResource{
			Kind: g.DiscreteResourceSpec.Kind, Value: g.DiscreteResourceSpec.Value,
		}}}
	}
	return &GenericResource{}
}

func (x *GenericResource) api() swarm.GenericResource {
	if n := x.GetNamedResourceSpec(); n != nil {
		return swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: n.Kind, Value: n.Value}}
	}
	if d := x.GetDiscreteResourceSpec(); d != nil {
		return swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: d.Kind, Value: d.Value}}
	}
	return swarm.GenericResource{}
}

func newResources(r *swarm.Resources) *Resources {
	return &Resources{NanoCpus: r.NanoCPUs, MemoryBytes: r.MemoryBytes, Generic: each(r.GenericResources, newGeneric)}
}

func (x *Resources) api() *swarm.Resources {
	return &swarm.Resources{
		NanoCPUs:         x.GetNanoCpus(),
		MemoryBytes:      x.GetMemoryBytes(),
		GenericResources: each(x.GetGeneric(), (*GenericResource).api),
	}
}
