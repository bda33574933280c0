package swarmpb

import (
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func availabilities() []swarm.NodeAvailability {
	return []swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain}
}

func nodeStates() []swarm.NodeState {
	return []swarm.NodeState{swarm.NodeStateUnknown, swarm.NodeStateDown, swarm.NodeStateReady, swarm.NodeStateDisconnected}
}

func certificateStates() []api.CertificateState {
	return []api.CertificateState{
		"", api.CertificateRenew, api.CertificatePending, api.CertificateIssued, api.CertificateFailed, api.CertificateRotate,
	}
}

// NewRole returns a role's number on the wire.
func NewRole(r swarm.NodeRole) NodeRole {
	if r == swarm.NodeRoleManager {
		return NodeRole_MANAGER
	}
	return NodeRole_WORKER
}

// API returns the role: worker, for a number that is not known.
func (x NodeRole) API() swarm.NodeRole {
	if x == NodeRole_MANAGER {
		return swarm.NodeRoleManager
	}
	return swarm.NodeRoleWorker
}

// NewAvailability returns an availability's number on the wire.
func NewAvailability(a swarm.NodeAvailability) NodeSpec_Availability {
	return numberOf[NodeSpec_Availability](availabilities(), a)
}

// API returns the availability, empty for a number that is not known.
func (x NodeSpec_Availability) API() swarm.NodeAvailability { return nameOf(availabilities(), x) }

// NewNodeDescription converts a node's description of itself.
func NewNodeDescription(d *swarm.NodeDescription) *NodeDescription {
	return &NodeDescription{
		Hostname:  d.Hostname,
		Platform:  newPlatform(&d.Platform),
		Resources: newResources(&d.Resources),
		Engine: &EngineDescription{
			EngineVersion: d.Engine.EngineVersion,
			Labels:        table(d.Engine.Labels),
			Plugins: each(d.Engine.Plugins, func(p swarm.PluginDescription) *PluginDescription {
				return &PluginDescription{Type: p.Type, Name: p.Name}
			}),
		},
		TlsInfo: &NodeTLSInfo{
			TrustRoot:           []byte(d.TLSInfo.TrustRoot),
			CertIssuerSubject:   d.TLSInfo.CertIssuerSubject,
			CertIssuerPublicKey: d.TLSInfo.CertIssuerPublicKey,
		},
		CsiInfo: each(d.CSIInfo, newCSIInfo),
	}
}

// API converts back.
func (x *NodeDescription) API() *swarm.NodeDescription {
	tls := x.GetTlsInfo()
	return &swarm.NodeDescription{
		Hostname:  x.GetHostname(),
		Platform:  x.GetPlatform().api(),
		Resources: *x.GetResources().api(),
		Engine: swarm.EngineDescription{
			EngineVersion: x.GetEngine().GetEngineVersion(),
			Labels:        table(x.GetEngine().GetLabels()),
			Plugins: each(x.GetEngine().GetPlugins(), func(p *PluginDescription) swarm.PluginDescription {
				return swarm.PluginDescription{Type: p.GetType(), Name: p.GetName()}
			}),
		},
		TLSInfo: swarm.TLSInfo{
			TrustRoot:           string(tls.GetTrustRoot()),
			CertIssuerSubject:   list(tls.GetCertIssuerSubject()),
			CertIssuerPublicKey: list(tls.GetCertIssuerPublicKey()),
		},
		CSIInfo: each(x.GetCsiInfo(), (*NodeCSIInfo).api),
	}
}

func newCSIInfo(c swarm.NodeCSIInfo) *NodeCSIInfo {
	return &NodeCSIInfo{
		PluginName: c.PluginName, NodeId: c.NodeID, MaxVolumesPerNode: c.MaxVolumesPerNode,
		AccessibleTopology: some(c.AccessibleTopology, func(t *swarm.Topology) *Topology {
			return &Topology{Segments: table(t.Segments)}
		}),
	}
}

func (x *NodeCSIInfo) api() swarm.NodeCSIInfo {
	return swarm.NodeCSIInfo{
		PluginName: x.GetPluginName(), NodeID: x.GetNodeId(), MaxVolumesPerNode: x.GetMaxVolumesPerNode(),
		AccessibleTopology: some(x.GetAccessibleTopology(), func(t *Topology) *swarm.Topology {
			return &swarm.Topology{Segments: table(t.Segments)}
		}),
	}
}

// NewCertificate converts a node's certificate and where its request stands.
func NewCertificate(c *api.Certificate) *Certificate {
	return &Certificate{
		Role: NewRole(c.Role), Csr: c.CSR, Certificate: c.Cert, Cn: c.CN,
		Status: &IssuanceStatus{State: numberOf[IssuanceStatus_State](certificateStates(), c.State), Err: c.Err},
	}
}

// API converts back.
func (x *Certificate) API() api.Certificate {
	return api.Certificate{
		Role: x.GetRole().API(), CSR: list(x.GetCsr()), Cert: list(x.GetCertificate()), CN: x.GetCn(),
		State: nameOf(certificateStates(), x.GetStatus().GetState()), Err: x.GetStatus().GetErr(),
	}
}

// NewNode converts a node as its own agent gets to see it.
func NewNode(n *api.Node) *Node {
	m := &Node{
		Id:   n.ID,
		Meta: newMeta(&n.Meta),
		Spec: &NodeSpec{
			Annotations:  newAnnotations(&n.Spec.Annotations),
			DesiredRole:  NewRole(n.Spec.Role),
			Membership:   NodeSpec_ACCEPTED,
			Availability: NewAvailability(n.Spec.Availability),
		},
		Description: NewNodeDescription(&n.Description),
		Status: &NodeStatus{
			State:   numberOf[NodeStatus_State](nodeStates(), n.Status.State),
			Message: n.Status.Message,
			Addr:    n.Status.Addr,
		},
		Certificate: NewCertificate(&n.Certificate),
		Role:        NewRole(n.Role),
	}
	if n.RaftID != 0 || n.ManagerAddr != "" {
		m.ManagerStatus = &ManagerStatus{RaftId: n.RaftID, Addr: n.ManagerAddr}
	}
	return m
}

// API converts back.
func (x *Node) API() *api.Node {
	spec := x.GetSpec()
	return &api.Node{
		Node: swarm.Node{
			ID:   x.GetId(),
			Meta: x.GetMeta().api(),
			Spec: swarm.NodeSpec{
				Annotations:  spec.GetAnnotations().api(),
				Role:         spec.GetDesiredRole().API(),
				Availability: spec.GetAvailability().API(),
			},
			Description: *x.GetDescription().API(),
			Status: swarm.NodeStatus{
				State:   nameOf(nodeStates(), x.GetStatus().GetState()),
				Message: x.GetStatus().GetMessage(),
				Addr:    x.GetStatus().GetAddr(),
			},
		},
		Role:        x.GetRole().API(),
		Certificate: x.GetCertificate().API(),
		RaftID:      x.GetManagerStatus().GetRaftId(),
		ManagerAddr: x.GetManagerStatus().GetAddr(),
	}
}
