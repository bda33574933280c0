package sim

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
)

// operated is in the names of operators' services.
const operated = "op-"

const canaryLabel = api.PolicyPrefix + "update.canary"

// zones are what hosts are labelled with.
var zones = []string{"a", "b"}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// create makes a service of a random kind.
func (o *operator) create(ctx context.Context, m *manager) {
	o.made++
	kinds := []struct {
		name  string
		shape func(s *swarm.ServiceSpec)
	}{
		{"web", o.web}, {"canary", o.canary}, {"global", o.global}, {"job", o.replicatedJob}, {"globaljob", o.globalJob},
		{"big", o.big}, {"secret", o.secretive}, {"picky", o.picky}, {"device", o.devices},
	}
	k := kinds[o.rng.IntN(len(kinds))]
	order := ""
	if o.rng.IntN(3) == 0 {
		order = startFirst
	}
	s := &swarm.ServiceSpec{}
	s.Name = fmt.Sprintf("%s%s-%d-%d", order+operated, k.name, o.id, o.made)
	s.Labels = map[string]string{}
	s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: fmt.Sprint("app:", o.rng.IntN(1000))}
	s.TaskTemplate.RestartPolicy = o.restart()
	s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1 + o.rng.IntN(4)))}
	s.UpdateConfig, s.RollbackConfig = o.pace(order), o.pace(order)
	s.RollbackConfig.FailureAction = swarm.UpdateFailureActionPause
	k.shape(s)
	_, err := m.control.ServiceCreate(ctx, s, control.ServiceOptions{})
	o.told("make "+s.Name, m, err, api.NotFound, api.Invalid) // another has its ports
	if err == nil || !certain(err) {
		o.names = append(o.names, s.Name)
	}
}

func (o *operator) restart() *swarm.RestartPolicy {
	r := &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: new(time.Duration(o.rng.IntN(1000)) * time.Millisecond)}
	if o.rng.IntN(4) == 0 {
		r.MaxAttempts = new(uint64(1 + o.rng.IntN(3)))
	}
	return r
}

func (o *operator) pace(order string) *swarm.UpdateConfig {
	actions := []swarm.FailureAction{swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionPause, swarm.UpdateFailureActionRollback}
	u := &swarm.UpdateConfig{
		Parallelism: uint64(o.rng.IntN(3)), Delay: time.Duration(o.rng.IntN(2)) * time.Second, Monitor: time.Second,
		FailureAction: actions[o.rng.IntN(len(actions))], Order: swarm.UpdateOrderStopFirst,
	}
	if order != "" {
		u.Order = swarm.UpdateOrderStartFirst
	}
	return u
}

func (o *operator) placement() *swarm.Placement {
	p := &swarm.Placement{}
	switch o.rng.IntN(4) {
	case 0:
		p.Constraints = []string{"node.labels.zone==" + zones[o.rng.IntN(len(zones))]}
	case 1:
		p.Constraints = []string{"node.role==worker"}
	case 2:
		p.Preferences = []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}
	}
	return p
}

func (o *operator) attached() (all []swarm.NetworkAttachmentConfig) {
	for _, n := range o.nets {
		if o.rng.IntN(2) == 0 {
			all = append(all, swarm.NetworkAttachmentConfig{Target: n})
		}
	}
	return all
}

func (o *operator) endpoint() *swarm.EndpointSpec {
	e := &swarm.EndpointSpec{}
	switch o.rng.IntN(4) {
	case 0:
		e.Ports = []swarm.PortConfig{{TargetPort: 80}, {TargetPort: 81}}
	case 1:
		e.Ports = []swarm.PortConfig{{TargetPort: 80, PublishedPort: uint32(8000 + o.rng.IntN(4))}}
	case 2:
		e.Ports = []swarm.PortConfig{{TargetPort: 80, PublishedPort: uint32(9000 + o.rng.IntN(4)), PublishMode: swarm.PortConfigPublishModeHost}}
	default:
		e.Mode = swarm.ResolutionModeDNSRR
	}
	return e
}

func (o *operator) web(s *swarm.ServiceSpec) {
	s.TaskTemplate.Networks, s.EndpointSpec = o.attached(), o.endpoint()
	if o.rng.IntN(2) == 0 {
		s.Labels[api.RebalanceLabel] = "true"
	}
}

func (o *operator) canary(s *swarm.ServiceSpec) {
	s.TaskTemplate.Networks = o.attached()
	s.Labels[canaryLabel] = "1"
	if o.rng.IntN(2) == 0 {
		s.Labels[api.PolicyPrefix+"update.promote"] = string(api.PromoteHealth)
	}
}

func (o *operator) global(s *swarm.ServiceSpec) {
	s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	s.TaskTemplate.Placement, s.TaskTemplate.Networks = o.placement(), o.attached()
}

func (o *operator) job() *swarm.ReplicatedJob {
	return &swarm.ReplicatedJob{MaxConcurrent: new(uint64(1 + o.rng.IntN(3))), TotalCompletions: new(uint64(1 + o.rng.IntN(6)))}
}

func (o *operator) asJob(s *swarm.ServiceSpec) {
	s.UpdateConfig, s.RollbackConfig = nil, nil
	s.TaskTemplate.ContainerSpec.Image = "job:1"
	s.TaskTemplate.Networks = o.attached()
}

func (o *operator) replicatedJob(s *swarm.ServiceSpec) {
	s.Mode = swarm.ServiceMode{ReplicatedJob: o.job()}
	o.asJob(s)
}

func (o *operator) globalJob(s *swarm.ServiceSpec) {
	s.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	o.asJob(s)
}

// big services have priorities, and take so much room that not all find some.
func (o *operator) big(s *swarm.ServiceSpec) {
	s.Labels[api.PriorityLabel] = fmt.Sprint(o.rng.IntN(4))
	s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: int64(1+o.rng.IntN(3)) * 1e9, MemoryBytes: 1 << 30}}
	s.EndpointSpec = o.endpoint()
}

// picky services have rules about where their tasks are, and with whom.
func (o *operator) picky(s *swarm.ServiceSpec) {
	p := o.placement()
	p.MaxReplicas = uint64(o.rng.IntN(3))
	s.TaskTemplate.Placement = p
	other := s.Name
	if len(o.names) > 0 && o.rng.IntN(4) > 0 {
		other = o.names[o.rng.IntN(len(o.names))]
	}
	rules := []string{"service==", "service!=", "service==~", "service!=~"}
	s.Labels[api.AffinityLabel] = rules[o.rng.IntN(len(rules))] + other
	s.Labels[api.PolicyPrefix+"schedule.strategy"] = []string{"spread", "binpack", "random"}[o.rng.IntN(3)]
	s.EndpointSpec = o.endpoint()
}

// devices need generic resources, by name and by number.
func (o *operator) devices(s *swarm.ServiceSpec) {
	want := func(kind string, most int) swarm.GenericResource {
		return swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: int64(1 + o.rng.IntN(most))}}
	}
	r := &swarm.Resources{GenericResources: []swarm.GenericResource{want(gpu, gpus)}}
	if o.rng.IntN(2) == 0 {
		r.GenericResources = append(r.GenericResources, want(licence, licences))
	}
	s.Labels[api.PriorityLabel] = fmt.Sprint(o.rng.IntN(3))
	s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: r}
}

func (o *operator) secretive(s *swarm.ServiceSpec) {
	s.Labels[api.PolicyPrefix+"rotate"] = "true"
	s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{
		SecretID: o.secret1, SecretName: o.secretName(1), File: &swarm.SecretReferenceFileTarget{Name: "pw", UID: "0", GID: "0", Mode: 0o400},
	}}
}
