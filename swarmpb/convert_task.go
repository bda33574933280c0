package swarmpb

import (
	"math"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// NewTask converts a task. spec is NewTaskSpec(t.Spec), made once for all tasks
// that share it. network finds the networks that the task is attached to; one
// that it doesn't find is sent by its id alone.
func NewTask(t *api.Task, spec *TaskSpec, network func(id string) *api.Network) *Task {
	m := &Task{
		Id: t.ID, Meta: newMeta(&t.Meta), Spec: spec, SpecVersion: newVersion(t.SpecVersion),
		ServiceId: t.ServiceID, Slot: uint64(max(t.Slot, 0)), NodeId: t.NodeID,
		Annotations: &Annotations{}, ServiceAnnotations: &Annotations{},
		Status: NewTaskStatus(&t.Status), DesiredState: NewTaskState(t.DesiredState),
		AssignedGenericResources: each(t.GenericResources, newGeneric),
		Endpoint:                 &Endpoint{Ports: each(t.Ports, newPort)},
		Volumes: each(t.Volumes, func(v swarm.VolumeAttachment) *VolumeAttachment {
			return &VolumeAttachment{Id: v.ID, Source: v.Source, Target: v.Target}
		}),
	}
	for _, a := range t.Networks {
		m.Networks = append(m.Networks, newAttachment(a, network))
	}
	if t.JobIteration != nil {
		m.JobIteration = newVersion(t.JobIteration.Index)
	}
	if t.Spec != nil {
		m.Annotations.Name = t.Name()
		m.ServiceAnnotations.Name = t.Spec.ServiceName
		m.ServiceAnnotations.Labels = table(t.Spec.ServiceLabels)
		m.Global = t.Spec.Global
		m.LogDriver = spec.GetLogDriver()
		m.Endpoint.Spec = some(t.Spec.Endpoint, newEndpointSpec)
	}
	return m
}

// SetVirtualIPs says by which addresses the task's service is reached.
func (x *Task) SetVirtualIPs(vips []swarm.EndpointVirtualIP) {
	for _, v := range vips {
		x.Endpoint.VirtualIps = append(x.Endpoint.VirtualIps, &Endpoint_VirtualIP{NetworkId: v.NetworkID, Addr: prefix(v.Addr)})
	}
}

// API converts back. The networks that came with the task are Attached's.
func (x *Task) API() *api.Task {
	t := &api.Task{
		ID: x.GetId(), Meta: x.GetMeta().api(), ServiceID: x.GetServiceId(), NodeID: x.GetNodeId(),
		SpecVersion: x.GetSpecVersion().GetIndex(), Slot: int(min(x.GetSlot(), math.MaxInt32)),
		Spec: x.GetSpec().api(), Status: *x.GetStatus().API(), DesiredState: x.GetDesiredState().API(),
		Ports:            each(x.GetEndpoint().GetPorts(), (*PortConfig).api),
		GenericResources: each(x.GetAssignedGenericResources(), (*GenericResource).api),
		Volumes: each(x.GetVolumes(), func(v *VolumeAttachment) swarm.VolumeAttachment {
			return swarm.VolumeAttachment{ID: v.GetId(), Source: v.GetSource(), Target: v.GetTarget()}
		}),
		Networks:     each(x.GetNetworks(), (*NetworkAttachment).api),
		JobIteration: some(x.GetJobIteration(), func(v *Version) *swarm.Version { return &swarm.Version{Index: v.GetIndex()} }),
	}
	t.Spec.ServiceName = x.GetServiceAnnotations().GetName()
	t.Spec.ServiceLabels = table(x.GetServiceAnnotations().GetLabels())
	t.Spec.Global = x.GetGlobal()
	t.Spec.Endpoint = some(x.GetEndpoint().GetSpec(), (*EndpointSpec).api)
	if t.Spec.LogDriver == nil {
		t.Spec.LogDriver = some(x.GetLogDriver(), (*Driver).api)
	}
	return t
}

// Attached lists the networks that came with the task's message.
func (x *Task) Attached() []*api.Network {
	var all []*api.Network
	for _, a := range x.GetNetworks() {
		if a.GetNetwork() != nil {
			all = append(all, a.GetNetwork().API())
		}
	}
	return all
}

func newAttachment(a api.NetworkAttachment, network func(id string) *api.Network) *NetworkAttachment {
	m := &NetworkAttachment{
		Addresses: each(a.Addresses, prefix), Aliases: list(a.Aliases), DriverAttachmentOpts: table(a.DriverOpts),
	}
	if n := network(a.NetworkID); n != nil {
		m.Network = NewNetwork(n)
	} else {
		m.Network = &Network{Id: a.NetworkID}
	}
	return m
}

func (x *NetworkAttachment) api() api.NetworkAttachment {
	a := api.NetworkAttachment{
		NetworkID: x.GetNetwork().GetId(), Aliases: list(x.GetAliases()), DriverOpts: table(x.GetDriverAttachmentOpts()),
	}
	for _, s := range x.GetAddresses() {
		if p, err := netip.ParsePrefix(s); err == nil {
			a.Addresses = append(a.Addresses, p)
		}
	}
	return a
}

// NewTaskState returns a state's number on the wire; NEW for an unknown one.
func NewTaskState(s swarm.TaskState) TaskState { return TaskState(max(api.Rank(s), 0)) }

// API returns the state; empty, which ranks below all others, for a number that
// is not known.
func (x TaskState) API() swarm.TaskState {
	s, _ := api.StateOfRank(int(x))
	return s
}

// text makes s fit for the wire, which takes nothing but UTF-8: errors may quote
// what a program wrote.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// NewTaskStatus converts a task's status.
func NewTaskStatus(s *swarm.TaskStatus) *TaskStatus {
	m := &TaskStatus{
		Timestamp: newTime(s.Timestamp), State: NewTaskState(s.State), Message: text(s.Message), Err: text(s.Err),
	}
	if c := s.ContainerStatus; c != nil {
		m.RuntimeStatus = &TaskStatus_Container{Container: &ContainerStatus{
			ContainerId: c.ContainerID, Pid: narrow(c.PID), ExitCode: narrow(c.ExitCode),
		}}
	}
	if len(s.PortStatus.Ports) > 0 {
		m.PortStatus = &PortStatus{Ports: each(s.PortStatus.Ports, newPort)}
	}
	return m
}

// API converts back.
func (x *TaskStatus) API() *swarm.TaskStatus {
	return &swarm.TaskStatus{
		Timestamp: apiTime(x.GetTimestamp()), State: x.GetState().API(), Message: x.GetMessage(), Err: x.GetErr(),
		ContainerStatus: some(x.GetContainer(), func(c *ContainerStatus) *swarm.ContainerStatus {
			return &swarm.ContainerStatus{ContainerID: c.GetContainerId(), PID: int(c.GetPid()), ExitCode: int(c.GetExitCode())}
		}),
		PortStatus: swarm.PortStatus{Ports: each(x.GetPortStatus().GetPorts(), (*PortConfig).api)},
	}
}

// NewSecret converts a secret, its data included.
func NewSecret(s *api.Secret) *Secret {
	return &Secret{Id: s.ID, Meta: newMeta(&s.Meta), Spec: &SecretSpec{
		Annotations: newAnnotations(&s.Spec.Annotations), Data: s.Spec.Data,
		Templating: some(s.Spec.Templating, newDriver), Driver: some(s.Spec.Driver, newDriver),
	}}
}

// API converts back.
func (x *Secret) API() *api.Secret {
	spec := x.GetSpec()
	return &api.Secret{Secret: swarm.Secret{ID: x.GetId(), Meta: x.GetMeta().api(), Spec: swarm.SecretSpec{
		Annotations: spec.GetAnnotations().api(), Data: list(spec.GetData()),
		Templating: some(spec.GetTemplating(), (*Driver).api), Driver: some(spec.GetDriver(), (*Driver).api),
	}}}
}

// NewConfig converts a config, its data included.
func NewConfig(c *api.Config) *Config {
	return &Config{Id: c.ID, Meta: newMeta(&c.Meta), Spec: &ConfigSpec{
		Annotations: newAnnotations(&c.Spec.Annotations), Data: c.Spec.Data, Templating: some(c.Spec.Templating, newDriver),
	}}
}

// API converts back.
func (x *Config) API() *api.Config {
	spec := x.GetSpec()
	return &api.Config{Config: swarm.Config{ID: x.GetId(), Meta: x.GetMeta().api(), Spec: swarm.ConfigSpec{
		Annotations: spec.GetAnnotations().api(), Data: list(spec.GetData()), Templating: some(spec.GetTemplating(), (*Driver).api),
	}}}
}
