package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	netapi "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec/exectest"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
)

// operator is a user who has services of all kinds, and does with them what users do.
type operator struct {
	c       *cluster
	id      int
	rng     *rand.Rand
	made    int
	names   []string
	nets    []string
	secrets int    // versions made
	secret1 string // id of the first
}

// maxServices is how many services an operator has at a time.
const maxServices = 4

func newOperator(c *cluster, id int) *operator {
	return &operator{c: c, id: id, rng: rand.New(rand.NewPCG(c.seed, 300+uint64(id)))}
}

func (o *operator) run(ctx context.Context) {
	for pause(ctx, time.Duration(100+o.rng.IntN(900))*time.Millisecond) {
		m := o.c.manager(o.rng)
		if m == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, opTimeout)
		if _, err := m.raft.ReadIndex(call); err == nil {
			o.act(call, m)
		}
		cancel()
	}
}

func (o *operator) act(ctx context.Context, m *manager) {
	switch {
	case len(o.nets) < 2 || o.rng.IntN(25) == 0:
		o.networks(ctx, m)
		return
	case o.secrets == 0 || o.rng.IntN(12) == 0:
		o.secret(ctx, m)
		return
	case len(o.names) < maxServices:
		o.create(ctx, m)
		return
	}
	name := o.names[o.rng.IntN(len(o.names))]
	s, err := m.control.ServiceInspect(ctx, name, false)
	if err != nil {
		o.told("look at "+name, m, err, api.NotFound)
		o.forget(name)
		return
	}
	acts := o.acts(m, s)
	a := acts[o.rng.IntN(len(acts))]
	err = a.do(ctx)
	o.told(a.what+" "+name, m, err, append(a.refused, api.OutOfSequence, api.NotFound)...)
}

func (o *operator) forget(name string) {
	o.names = slices.DeleteFunc(o.names, func(n string) bool { return n == name })
}

// told notes what came of something. Refusals that are not expected are a failure:
// what operators ask for makes sense.
func (o *operator) told(what string, m *manager, err error, expected ...api.Class) {
	o.c.events.add(fmt.Sprintf("operator %d: %s at %s: %v", o.id, what, m.host.id, err))
	if err == nil {
		o.c.acked.Add(1)
		return
	}
	switch class := api.ClassOf(err); class {
	case api.Invalid, api.NotFound, api.Exists, api.Internal, api.Unimplemented, api.PermissionDenied:
		if !slices.Contains(expected, class) {
			o.c.failf("operator %d: %s at %s: %v", o.id, what, m.host.id, err)
		}
	}
}

// networks makes a network, now and then a small one or one of small subnets, or
// removes one.
func (o *operator) networks(ctx context.Context, m *manager) {
	if len(o.nets) > 2 {
		name := o.nets[o.rng.IntN(len(o.nets))]
		err := m.control.NetworkRemove(ctx, name)
		o.told("remove network "+name, m, err, api.PermissionDenied, api.NotFound, api.Invalid, api.Conflict)
		if !stays(err) {
			o.nets = slices.DeleteFunc(o.nets, func(n string) bool { return n == name })
		}
		return
	}
	o.made++
	q := &netapi.CreateRequest{Name: fmt.Sprintf("net%d-%d", o.id, o.made)}
	if o.rng.IntN(2) == 0 {
		base := fmt.Sprintf("192.168.%d.", 100*o.id+o.made%100)
		q.IPAM = &netapi.IPAM{Config: []netapi.IPAMConfig{{Subnet: prefix(base + "0/29")}}}
		if o.made%2 == 0 {
			q.IPAM.Config = []netapi.IPAMConfig{{Subnet: prefix(base + "0/30")}, {Subnet: prefix(base + "8/29")}, {Subnet: prefix(base + "4/30")}}
		}
	}
	_, err := m.control.NetworkCreate(ctx, q)
	o.told("make network "+q.Name, m, err)
	if err == nil {
		o.nets = append(o.nets, q.Name)
	}
}

// stays reports whether what was to be removed is there as before. A removal that was not
// answered may come to pass at any time later: who knows that does not count on it any more.
func stays(err error) bool {
	return err != nil && !api.Is(err, api.NotFound) &&
		(certain(err) || api.Is(err, api.Conflict) || api.Is(err, api.Invalid) || api.Is(err, api.PermissionDenied))
}

// secret makes the next version of the operator's secret.
func (o *operator) secret(ctx context.Context, m *manager) {
	spec := &swarm.SecretSpec{Annotations: swarm.Annotations{Name: o.secretName(o.secrets + 1)}, Data: []byte("x")}
	if o.secrets > 0 {
		spec.Labels = map[string]string{api.VersionOfLabel: o.secretName(1)}
	}
	id, err := m.control.SecretCreate(ctx, spec)
	o.told("make secret "+spec.Name, m, err, api.Exists)
	if api.Is(err, api.Exists) { // it was made after all
		var have *swarm.Secret
		if have, err = m.control.SecretInspect(ctx, spec.Name); err == nil {
			id = have.ID
		}
	}
	if err != nil {
		return
	}
	if o.secrets++; o.secrets == 1 {
		o.secret1 = id
	}
}

func (o *operator) secretName(n int) string { return fmt.Sprintf("secret%d-%d", o.id, n) }

// behave says how an operator's task goes: images app run, those called bad do not
// until all faults are over, jobs end after a while.
func (h *host) behave(t *api.Task) exectest.Script {
	var s exectest.Script
	image, mode := strings.Split(t.Spec.ContainerSpec.Image, ":")[0], luck(t.ID)
	if !strings.Contains(t.Spec.ServiceName, operated) {
		return s
	}
	s.Prepare = func(ctx context.Context) error {
		pause(ctx, time.Duration(mode%7)*50*time.Millisecond)
		return ctx.Err()
	}
	switch image {
	case "job":
		s.Start = func(context.Context) error {
			time.AfterFunc(time.Duration(100+mode%3000)*time.Millisecond, func() {
				code := 0
				if mode%5 == 0 && !h.c.mended.Load() {
					code = 1
				}
				h.fake.Kill(t.ID, code)
			})
			return nil
		}
	case "bad":
		s.Start = func(context.Context) error {
			if mode%4 == 0 && !h.c.mended.Load() {
				return fmt.Errorf("it does not start")
			}
			time.AfterFunc(time.Duration(1+mode%2000)*time.Millisecond, func() {
				if !h.c.mended.Load() {
					h.fake.Kill(t.ID, 1)
				}
			})
			return nil
		}
	}
	return s
}

// luck is a number that a task is born with.
func luck(id string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return h.Sum32()
}

// act is something that a user does to a service.
type act struct {
	what    string
	do      func(ctx context.Context) error
	refused []api.Class
}

func (o *operator) acts(m *manager, s *swarm.Service) []act {
	update := func(what string, change func(n *swarm.ServiceSpec)) act {
		return act{what, func(ctx context.Context) error {
			n := s.Spec
			c := *n.TaskTemplate.ContainerSpec
			n.TaskTemplate.ContainerSpec = &c
			change(&n)
			_, err := m.control.ServiceUpdate(ctx, s.ID, s.Version.Index, &n, control.ServiceOptions{})
			return err
		}, nil}
	}
	stopped, job := (&api.Service{Service: *s}).Stopped(), s.Spec.Mode.ReplicatedJob != nil || s.Spec.Mode.GlobalJob != nil
	image := func(n *swarm.ServiceSpec) string {
		if job {
			return "job"
		}
		if o.rng.IntN(3) == 0 {
			return "bad"
		}
		return "app"
	}
	anew := update("a new image for", func(n *swarm.ServiceSpec) {
		n.TaskTemplate.ContainerSpec.Image = fmt.Sprint(image(n), ":", o.rng.IntN(1000))
	})
	all := []act{
		anew, anew,
		update("force", func(n *swarm.ServiceSpec) { n.TaskTemplate.ForceUpdate++ }),
		update("stop or start", func(n *swarm.ServiceSpec) { n.Labels = api.SetStopped(n.Labels, !stopped) }),
		update("constrain", func(n *swarm.ServiceSpec) { n.TaskTemplate.Placement = o.placement() }),
		update("scale", func(n *swarm.ServiceSpec) {
			switch {
			case n.Mode.Replicated != nil:
				n.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(o.rng.IntN(6)))}
			case n.Mode.ReplicatedJob != nil:
				n.Mode.ReplicatedJob = o.job()
			}
		}),
		update("networks of", func(n *swarm.ServiceSpec) { n.TaskTemplate.Networks = o.attached() }),
		{"roll back", func(ctx context.Context) error {
			_, err := m.control.ServiceUpdate(ctx, s.ID, s.Version.Index, &s.Spec, control.ServiceOptions{Rollback: "previous"})
			return err
		}, []api.Class{api.Invalid}},
		{"roll back far", func(ctx context.Context) error {
			h, err := m.control.ServiceHistory(ctx, s.ID)
			if err != nil {
				return err
			}
			return m.control.ServiceRollback(ctx, s.ID, h[o.rng.IntN(len(h))].Number)
		}, []api.Class{api.Invalid}},
		{"remove", func(ctx context.Context) error { return m.control.ServiceRemove(ctx, s.ID) }, nil},
	}
	if stopped {
		all = append(all, all[3], all[3], all[3])
	}
	if s.Spec.Labels[canaryLabel] != "" {
		promote := act{"promote", func(ctx context.Context) error { return m.control.ServicePromote(ctx, s.ID) }, []api.Class{api.Invalid}}
		all = append(all, promote, promote, promote)
	}
	if !job {
		ports := update("ports of", func(n *swarm.ServiceSpec) { n.EndpointSpec = o.endpoint() })
		ports.refused = []api.Class{api.Invalid} // another has them
		all = append(all, ports)
	}
	return all
}
