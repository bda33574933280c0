package sim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
)

// opTimeout bounds a client's call.
const opTimeout = 6 * time.Second

// absent is the number of replicas of a service that is not there.
const absent = -1

// client creates, scales, updates and removes services of its own at random
// managers, and knows what each may be.
type client struct {
	c     *cluster
	id    int
	rng   *rand.Rand
	made  int
	names []string // those that it goes on with

	mu  sync.Mutex
	may map[string][]int // how many replicas each service may have
}

func newClient(c *cluster, id int) *client {
	return &client{c: c, id: id, rng: rand.New(rand.NewPCG(c.seed, 100+uint64(id))), may: map[string][]int{}}
}

// manager returns one that runs and knows the swarm; nil: there is none.
func (c *cluster) manager(rng *rand.Rand) *manager {
	h := c.hosts[rng.IntN(len(c.hosts))]
	m := h.managing()
	if m == nil {
		return nil
	}
	select {
	case <-m.founded:
		return m
	default:
		return nil
	}
}

func (cl *client) run(ctx context.Context) {
	for pause(ctx, time.Duration(cl.rng.IntN(1500))*time.Millisecond) {
		m := cl.c.manager(cl.rng)
		if m == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, opTimeout)
		cl.act(call, m)
		cancel()
	}
}

func (cl *client) act(ctx context.Context, m *manager) {
	if len(cl.names) < 2 {
		cl.create(ctx, m)
		return
	}
	name := cl.names[cl.rng.IntN(len(cl.names))]
	if _, err := m.raft.ReadIndex(ctx); err != nil {
		return
	}
	s, err := m.control.ServiceInspect(ctx, name, false)
	switch {
	case api.Is(err, api.NotFound):
		cl.saw(name, absent, m)
		cl.names = slices.DeleteFunc(cl.names, func(n string) bool { return n == name })
		return
	case err != nil:
		cl.c.failf("client %d: inspect %s: %v", cl.id, name, err)
		return
	}
	cl.saw(name, int(*s.Spec.Mode.Replicated.Replicas), m)
	if cl.rng.IntN(6) == 0 {
		err := m.control.ServiceRemove(ctx, name)
		cl.wrote(name, absent, err, m)
		return
	}
	spec := s.Spec
	replicas := cl.rng.IntN(5)
	spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
	if cl.rng.IntN(3) == 0 {
		container := *spec.TaskTemplate.ContainerSpec
		container.Image = fmt.Sprint("app:", cl.rng.IntN(1000))
		spec.TaskTemplate.ContainerSpec = &container
	}
	_, err = m.control.ServiceUpdate(ctx, s.ID, s.Version.Index, &spec, control.ServiceOptions{})
	cl.wrote(name, replicas, err, m)
}

func (cl *client) create(ctx context.Context, m *manager) {
	cl.made++
	name := fmt.Sprintf("s%d-%d", cl.id, cl.made)
	if cl.rng.IntN(3) == 0 {
		name = startFirst + name
	}
	cl.names = append(cl.names, name)
	replicas := cl.rng.IntN(5)
	cl.mu.Lock()
	cl.may[name] = []int{absent}
	cl.mu.Unlock()
	_, err := m.control.ServiceCreate(ctx, spec(name, replicas), control.ServiceOptions{})
	cl.wrote(name, replicas, err, m)
}

func spec(name string, replicas int) *swarm.ServiceSpec {
	s := &swarm.ServiceSpec{}
	s.Name, s.Mode.Replicated = name, &swarm.ReplicatedService{Replicas: new(uint64(replicas))}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: new(500 * time.Millisecond)}
	s.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Order: swarm.UpdateOrderStopFirst, FailureAction: swarm.UpdateFailureActionContinue}
	if strings.HasPrefix(name, startFirst) {
		s.UpdateConfig.Order = swarm.UpdateOrderStartFirst
	}
	return s
}

// saw checks what a linearizable read says.
func (cl *client) saw(name string, replicas int, m *manager) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if !slices.Contains(cl.may[name], replicas) {
		cl.c.failf("client %d: service %s has %d replicas at %s (-1: it is not there); it may have %v", cl.id, name, replicas, m.host.id, cl.may[name])
	}
	if replicas == absent {
		return // a creation may still come to pass
	}
	if slices.Contains(cl.may[name], absent) && cl.may[name][0] == absent {
		cl.may[name] = cl.may[name][1:] // the creation did
	}
}

// wrote notes what a write said.
func (cl *client) wrote(name string, replicas int, err error, m *manager) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	switch {
	case err == nil:
		cl.may[name] = []int{replicas}
		cl.c.events.add(fmt.Sprintf("client %d: %s has %d replicas, says %s", cl.id, name, replicas, m.host.id))
		cl.c.acked.Add(1)
	case !certain(err):
		cl.may[name] = append(cl.may[name], replicas)
	}
}

// certain reports whether an error says that nothing was changed.
func certain(err error) bool {
	return api.Is(err, api.OutOfSequence) || api.Is(err, api.NotFound) || api.Is(err, api.NotLeader) || strings.Contains(err.Error(), "othing was changed")
}

// A register is a label of a service without tasks.
const (
	register  = "register"
	registers = 3
)

// cas is an operation on a register: to read it, or to replace what was read
// before.
type cas struct {
	key           int
	write         bool
	expect, value string
	maybe         bool // nobody knows whether it came to pass
}

// history is what clients of registers did, for porcupine.
type history struct {
	mu  sync.Mutex
	ops []porcupine.Operation
}

func (h *history) add(o porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// model is a register per key, which changes only from what was expected.
func model() porcupine.Model {
	return porcupine.Model{
		Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
			parts := make([][]porcupine.Operation, registers)
			for _, o := range ops {
				k := o.Input.(cas).key
				parts[k] = append(parts[k], o)
			}
			return parts
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			in := input.(cas)
			if in.write {
				if in.maybe && state != in.expect {
					return true, state // it was too late
				}
				return state == in.expect, in.value
			}
			return state == output, state
		},
		Equal: func(a, b any) bool { return a == b },
	}
}

// now counts what happens to registers: instants of a bubble have no order.
func (c *cluster) now() int64 { return c.clock.Add(1) }

// linear checks the history. What it returns tells where it first was wrong.
func (h *history) linear() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, ops := range model().Partition(h.ops) {
		if porcupine.CheckOperations(model(), ops) {
			continue
		}
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		n := sort.Search(len(ops), func(n int) bool { return !porcupine.CheckOperations(model(), ops[:n]) })
		var b strings.Builder
		fmt.Fprintf(&b, "the history of register %d is not linearizable; up to where it first was not:", key)
		for _, o := range ops[max(0, n-15):n] {
			fmt.Fprintf(&b, "\n\tclient %d at %d to %d: %+v: %v", o.ClientId, o.Call, o.Return, o.Input, o.Output)
		}
		return b.String()
	}
	return ""
}

// registerClient reads and writes registers until ctx ends.
func (c *cluster) registerClient(ctx context.Context, id int) {
	rng := rand.New(rand.NewPCG(c.seed, 200+uint64(id)))
	for i := 0; pause(ctx, time.Duration(rng.IntN(400))*time.Millisecond); i++ {
		if m := c.manager(rng); m != nil {
			call, cancel := context.WithTimeout(ctx, opTimeout)
			c.touch(call, m, id, rng.IntN(registers), fmt.Sprintf("%d-%d", id, i), rng.IntN(2) == 0)
			cancel()
		}
	}
}

// touch reads a register, and perhaps writes it.
func (c *cluster) touch(ctx context.Context, m *manager, id, key int, value string, write bool) {
	o := porcupine.Operation{ClientId: id, Input: cas{key: key}, Call: c.now()}
	if _, err := m.raft.ReadIndex(ctx); err != nil {
		return
	}
	s, err := m.control.ServiceInspect(ctx, fmt.Sprint(register, key), false)
	if err != nil {
		c.failf("register %d at %s: %v", key, m.host.id, err)
		return
	}
	o.Output, o.Return = s.Spec.Labels[register], c.now()
	c.history.add(o)
	if !write {
		return
	}
	spec := s.Spec
	spec.Labels = map[string]string{register: value}
	o = porcupine.Operation{ClientId: id, Input: cas{key: key, write: true, expect: s.Spec.Labels[register], value: value}, Call: c.now()}
	_, err = m.control.ServiceUpdate(ctx, s.ID, s.Version.Index, &spec, control.ServiceOptions{})
	o.Return = c.now()
	switch {
	case err == nil:
		c.acked.Add(1)
	case certain(err):
		return
	default:
		in := o.Input.(cas)
		in.maybe = true
		o.Input, o.Return = in, 1<<62 // it may happen at any later time
	}
	c.history.add(o)
}
