package swarmpb

import (
	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/legion-swarm/legion/api"
)

const pluginKind = "plugin"

func restartConditions() []swarm.RestartPolicyCondition {
	return []swarm.RestartPolicyCondition{
		swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny,
	}
}

// NewTaskSpec converts a task's spec. The result can be shared by the messages
// of all tasks that have the spec.
func NewTaskSpec(s *api.TaskSpec) *TaskSpec {
	m := &TaskSpec{
		Resources: some(s.Resources, newRequirements),
		Restart:   some(s.RestartPolicy, newRestartPolicy),
		Placement: some(s.Placement, newPlacement),
		LogDriver: some(s.LogDriver, newDriver),
		Networks: each(s.Networks, func(n swarm.NetworkAttachmentConfig) *NetworkAttachmentConfig {
			return &NetworkAttachmentConfig{Target: n.Target, Aliases: list(n.Aliases), DriverAttachmentOpts: table(n.DriverOpts)}
		}),
		ForceUpdate: s.ForceUpdate,
	}
	switch {
	case s.ContainerSpec != nil:
		m.Runtime = &TaskSpec_Container{Container: newContainerSpec(s)}
	case s.NetworkAttachmentSpec != nil:
		m.Runtime = &TaskSpec_Attachment{Attachment: &NetworkAttachmentSpec{ContainerId: s.NetworkAttachmentSpec.ContainerID}}
	case s.PluginSpec != nil:
		m.Runtime = &TaskSpec_Generic{Generic: newPlugin(s.PluginSpec)}
	}
	return m
}

// api converts back; what the task's message says of the service is set by
// (*Task).API.
func (x *TaskSpec) api() *api.TaskSpec {
	s := &api.TaskSpec{TaskSpec: swarm.TaskSpec{
		RestartPolicy: some(x.GetRestart(), (*RestartPolicy).api),
		Placement:     some(x.GetPlacement(), (*Placement).api),
		LogDriver:     some(x.GetLogDriver(), (*Driver).api),
		Networks: each(x.GetNetworks(), func(n *NetworkAttachmentConfig) swarm.NetworkAttachmentConfig {
			return swarm.NetworkAttachmentConfig{
				Target: n.GetTarget(), Aliases: list(n.GetAliases()), DriverOpts: table(n.GetDriverAttachmentOpts()),
			}
		}),
		ForceUpdate: x.GetForceUpdate(),
	}}
	c := x.GetContainer()
	s.Resources = some(x.GetResources(), (*ResourceRequirements).api)
	if pids := c.GetPidsLimit(); pids != 0 {
		if s.Resources == nil {
			s.Resources = &swarm.ResourceRequirements{}
		}
		if s.Resources.Limits == nil {
			s.Resources.Limits = &swarm.Limit{}
		}
		s.Resources.Limits.Pids = pids
	}
	switch {
	case c != nil:
		s.Runtime = swarm.RuntimeContainer
		s.ContainerSpec = c.api()
		s.RegistryAuth = c.GetPullOptions().GetRegistryAuth()
	case x.GetAttachment() != nil:
		s.Runtime = swarm.RuntimeNetworkAttachment
		s.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{ContainerID: x.GetAttachment().GetContainerId()}
	case x.GetGeneric().GetKind() == pluginKind:
		s.Runtime = swarm.RuntimePlugin
		s.PluginSpec = x.GetGeneric().plugin()
	}
	return s
}

func newRequirements(r *swarm.ResourceRequirements) *ResourceRequirements {
	m := &ResourceRequirements{
		Limits: some(r.Limits, func(l *swarm.Limit) *Resources {
			return &Resources{NanoCpus: l.NanoCPUs, MemoryBytes: l.MemoryBytes}
		}),
		Reservations: some(r.Reservations, newResources),
	}
	if r.SwapBytes != nil {
		m.SwapBytes = wrapperspb.Int64(*r.SwapBytes)
	}
	if r.MemorySwappiness != nil {
		m.MemorySwappiness = wrapperspb.Int64(*r.MemorySwappiness)
	}
	return m
}

func (x *ResourceRequirements) api() *swarm.ResourceRequirements {
	value := func(v *wrapperspb.Int64Value) *int64 { n := v.GetValue(); return &n }
	return &swarm.ResourceRequirements{
		Limits: some(x.GetLimits(), func(l *Resources) *swarm.Limit {
			return &swarm.Limit{NanoCPUs: l.GetNanoCpus(), MemoryBytes: l.GetMemoryBytes()}
		}),
		Reservations:     some(x.GetReservations(), (*Resources).api),
		SwapBytes:        some(x.GetSwapBytes(), value),
		MemorySwappiness: some(x.GetMemorySwappiness(), value),
	}
}

func newRestartPolicy(r *swarm.RestartPolicy) *RestartPolicy {
	m := &RestartPolicy{Delay: newDuration(r.Delay), Window: newDuration(r.Window), Condition: RestartPolicy_ANY}
	if r.Condition != "" {
		m.Condition = numberOf[RestartPolicy_RestartCondition](restartConditions(), r.Condition)
	}
	if r.MaxAttempts != nil {
		m.MaxAttempts = *r.MaxAttempts
	}
	return m
}

func (x *RestartPolicy) api() *swarm.RestartPolicy {
	r := &swarm.RestartPolicy{
		Condition: nameOf(restartConditions(), x.GetCondition()),
		Delay:     apiDuration(x.GetDelay()),
		Window:    apiDuration(x.GetWindow()),
	}
	if n := x.GetMaxAttempts(); n != 0 {
		r.MaxAttempts = &n
	}
	return r
}

func newPlacement(p *swarm.Placement) *Placement {
	return &Placement{
		Constraints: list(p.Constraints),
		Preferences: each(p.Preferences, func(p swarm.PlacementPreference) *PlacementPreference {
			if p.Spread == nil {
				return &PlacementPreference{}
			}
			return &PlacementPreference{Preference: &PlacementPreference_Spread{
				Spread: &SpreadOver{SpreadDescriptor: p.Spread.SpreadDescriptor},
			}}
		}),
		Platforms:   each(p.Platforms, func(p swarm.Platform) *Platform { return newPlatform(&p) }),
		MaxReplicas: p.MaxReplicas,
	}
}

func (x *Placement) api() *swarm.Placement {
	return &swarm.Placement{
		Constraints: list(x.GetConstraints()),
		Preferences: each(x.GetPreferences(), func(p *PlacementPreference) swarm.PlacementPreference {
			return swarm.PlacementPreference{Spread: some(p.GetSpread(), func(s *SpreadOver) *swarm.SpreadOver {
				return &swarm.SpreadOver{SpreadDescriptor: s.GetSpreadDescriptor()}
			})}
		}),
		Platforms:   each(x.GetPlatforms(), (*Platform).api),
		MaxReplicas: x.GetMaxReplicas(),
	}
}

func newPlugin(p *swarm.RuntimeSpec) *GenericRuntimeSpec {
	payload, err := proto.Marshal(&PluginSpec{
		Name: p.Name, Remote: p.Remote, Disabled: p.Disabled, Env: list(p.Env),
		Privileges: each(p.Privileges, func(p *swarm.RuntimePrivilege) *PluginPrivilege {
			return &PluginPrivilege{Name: p.Name, Description: p.Description, Value: list(p.Value)}
		}),
	})
	if err != nil { // not valid UTF-8; the agent refuses the empty plugin
		payload = nil
	}
	return &GenericRuntimeSpec{
		Kind:    pluginKind,
		Payload: &anypb.Any{TypeUrl: string(swarm.RuntimeURLPlugin), Value: payload},
	}
}

func (x *GenericRuntimeSpec) plugin() *swarm.RuntimeSpec {
	p := &PluginSpec{}
	if err := proto.Unmarshal(x.GetPayload().GetValue(), p); err != nil {
		return &swarm.RuntimeSpec{}
	}
	return &swarm.RuntimeSpec{
		Name: p.Name, Remote: p.Remote, Disabled: p.Disabled, Env: list(p.Env),
		Privileges: each(p.Privileges, func(p *PluginPrivilege) *swarm.RuntimePrivilege {
			return &swarm.RuntimePrivilege{Name: p.GetName(), Description: p.GetDescription(), Value: list(p.GetValue())}
		}),
	}
}

func newEndpointSpec(e *swarm.EndpointSpec) *EndpointSpec {
	m := &EndpointSpec{Ports: each(e.Ports, newPort)}
	if e.Mode == swarm.ResolutionModeDNSRR {
		m.Mode = EndpointSpec_DNSRR
	}
	return m
}

func (x *EndpointSpec) api() *swarm.EndpointSpec {
	e := &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP, Ports: each(x.GetPorts(), (*PortConfig).api)}
	if x.GetMode() == EndpointSpec_DNSRR {
		e.Mode = swarm.ResolutionModeDNSRR
	}
	return e
}
