package api

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Object is what the store keeps. Implementations are pointers to the structs
// of this package; they are immutable once stored.
type Object interface {
	*Cluster | *Node | *Service | *Task | *Network | *Secret | *Config | *ServiceVersion
}

// Cluster is the swarm itself; there is exactly one. Written by package
// manager/control and, for root rotation, by the leader's CA loop.
type Cluster struct {
	swarm.ClusterInfo
	JoinTokens swarm.JoinTokens

	// RootCA is the certificate authority that signs node certificates.
	RootCA RootCA
	// UnlockKey unlocks managers' data at rest; empty when autolock is off.
	UnlockKey []byte
	// Removed lists the nodes that were removed from the cluster, by id, with
	// the time at which their certificates expire: until then they are refused.
	Removed map[string]time.Time
	// NetworkKeys protect what nodes send each other in encrypted networks.
	NetworkKeys NetworkKeys `json:",omitzero"`
}

// NetworkKeys are made and changed by the leader; see package manager/netkeys.
type NetworkKeys struct {
	OverlayKeys
	// Last is the greatest id that a key has had.
	Last uint32
	// Since is when Send became the key to send with.
	Since time.Time
	// Replace is how many more times that is to be another key, soon: then none that
	// was known when it was asked for is accepted any more.
	Replace int `json:",omitempty"`
}

// RootCA is a cluster's signing root. Cert and Key are PEM; Key is empty with
// an external CA. CrossSigned is set while a rotation is under way.
type RootCA struct {
	Cert        []byte
	Key         []byte
	Digest      string // of Cert, as join tokens carry it
	CrossSigned []byte
	NextCert    []byte
	NextKey     []byte
	// Vouched is Cert's key and name as the roots before vouch for it, directly or
	// through each other, the latest first: PEM, empty before the first rotation.
	Vouched []byte
	// Begun is when the rotation that is under way began.
	Begun time.Time
	// LastForced is the Spec.CAConfig.ForceRotate that was last acted on.
	LastForced uint64
}

// Node is a member of the cluster. Spec is written by users, Description and
// Status by the dispatcher, ManagerStatus is never stored: it is filled in by
// control from raft's membership when the node is read.
type Node struct {
	swarm.Node

	// Role is the role that the node has now; Spec.Role is the one wanted.
	Role swarm.NodeRole
	// Certificate is what the node was last issued.
	Certificate Certificate
	// RaftID is the manager's number in raft, 0 for workers.
	RaftID uint64
	// ManagerAddr is the address (host:port) at which other managers reach it.
	ManagerAddr string
	// DataAddr is the address by which other nodes reach its tasks, as it says
	// itself; empty: Status.Addr. Written by the dispatcher.
	DataAddr string `json:",omitempty"`
	// Ingress are the node's own addresses in the network of the routing mesh, one
	// a family, with the length of their subnet; IngressNetwork is the id of the
	// network that they are of. Written by the allocator. See IngressAddresses.
	Ingress        []netip.Prefix `json:",omitempty"`
	IngressNetwork string         `json:",omitempty"`
	// Session is the node's connection; the manager that serves it writes it.
	Session NodeSession
	// DownSince is when the node was found to be down; zero when it is not.
	DownSince time.Time
	// SpecFrom is a version since which Spec is what it is. Written by the store.
	SpecFrom uint64 `json:",omitempty"`
}

// NodeSession says which manager serves a node. Zero before its first session.
type NodeSession struct {
	ID      string // of the session: a new one for each
	Manager string // node id of the manager
	// Paused says that the node is the manager itself, and starts again.
	Paused bool
}

// CertificateState is where a node's certificate request stands.
type CertificateState string

// The states of a certificate. The numbers on the wire are in package swarmpb.
const (
	CertificatePending CertificateState = "pending"
	CertificateIssued  CertificateState = "issued"
	CertificateRenew   CertificateState = "renew"
	CertificateRotate  CertificateState = "rotate"
	CertificateFailed  CertificateState = "failed"
)

// Certificate is a node's request for a certificate and what came of it.
type Certificate struct {
	Role  swarm.NodeRole
	CSR   []byte // PEM
	State CertificateState
	Err   string
	Cert  []byte // PEM, the leaf and its chain
	CN    string // the node's id
	// Waiting says that it was last signed while the node was away, without its
	// help: the node fetches it when it comes back.
	Waiting bool
}

// Service is a wanted workload. Spec is written by users through
// manager/control, UpdateStatus by the update orchestrator, Endpoint by the
// allocator.
type Service struct {
	swarm.Service

	// SpecVersion is the Version.Index of the write that last changed
	// Spec.TaskTemplate or anything else that makes its tasks differ. Tasks
	// remember the one they were made from.
	SpecVersion uint64
	// PreviousSpecVersion belongs to PreviousSpec; 0 when there is none.
	PreviousSpecVersion uint64
	// RegistryAuth and PreviousRegistryAuth are the encoded registry logins that
	// belong to Spec and PreviousSpec.
	RegistryAuth         string
	PreviousRegistryAuth string

	// Number counts the service's versions, from 1; SpecSince is when Spec became
	// the present one. Earlier ones are kept as ServiceVersion.
	Number    uint64
	SpecSince time.Time
	// Promoted is the SpecVersion whose update may go on after its canaries; 0 is
	// none.
	Promoted uint64
	// SpecFrom is a version since which Spec is what it is. Written by the store.
	SpecFrom uint64 `json:",omitempty"`
}

// Task is one run of a service's spec in a slot (or on a node, for global
// services). It runs at most once: to restart is to replace.
//
// Spec, SpecVersion, Slot, ServiceID, JobIteration, NotBefore and DesiredState are written by the
// orchestrator (NodeID too, for global services), Networks and Ports by the allocator, NodeID and
// GenericResources by the scheduler, Status by the agent through the
// dispatcher (by managers only before ASSIGNED, and for ORPHANED).
type Task struct {
	ID string
	swarm.Meta

	ServiceID string
	Slot      int
	NodeID    string
	// SpecVersion names the version of the service's spec; 0 with a task that
	// has no service.
	SpecVersion uint64
	// Spec is shared by all tasks of the same service and spec version. In the
	// log and in snapshots it is stored once per (ServiceID, SpecVersion).
	Spec *TaskSpec

	Status       swarm.TaskStatus
	DesiredState swarm.TaskState
	// NotBefore is the earliest time at which DesiredState may become RUNNING:
	// the end of the restart delay. Zero: at once. Written when the task is made.
	NotBefore time.Time `json:",omitzero"`

	Networks         []NetworkAttachment
	Ports            []swarm.PortConfig // published ports, as allocated
	GenericResources []swarm.GenericResource
	JobIteration     *swarm.Version
	Volumes          []swarm.VolumeAttachment
	// Evicted says why the task has to leave its node though nothing is wrong with
	// it; empty if it may stay. Written by the scheduler (another took its room)
	// and by the orchestrator; it then is to shut down, and is replaced.
	Evicted string `json:",omitzero"`
	// MovedFrom is the node that the one before it in its slot was on, if the task
	// was made to balance the service. Written by the orchestrator.
	MovedFrom string `json:",omitzero"`
	// Ran is how long a task was running before it failed; 0 if it did not run, or
	// nobody heard of it. Written with the status.
	Ran time.Duration `json:",omitzero"`
}

// Since is when the task came to be in its state, by the clocks of managers where the
// node's says what can't be.
func (t *Task) Since() time.Time {
	at := t.Status.Timestamp
	if at.After(t.UpdatedAt) || at.Before(t.Born()) {
		at = t.UpdatedAt
	}
	return at
}

// Born is when the task was made. CreatedAt also has the order of a slot's tasks: it
// is later than that if a clock was set back after others of the slot were made.
func (t *Task) Born() time.Time {
	if t.UpdatedAt.Before(t.CreatedAt) {
		return t.UpdatedAt
	}
	return t.CreatedAt
}

// TaskSpec is all that tasks of one version of a service have in common.
type TaskSpec struct {
	swarm.TaskSpec
	// ServiceName and ServiceLabels are the service's annotations at this
	// version; they name the task and its container.
	ServiceName   string
	ServiceLabels map[string]string
	// Global is set for tasks of global services and global jobs, which are
	// named after their node, not their slot.
	Global bool
	// Endpoint is the endpoint spec of the service at this version.
	Endpoint *swarm.EndpointSpec
	// RegistryAuth is the encoded login for the image's registry, as it came in
	// the X-Registry-Auth header; empty for none.
	RegistryAuth string
	// Container is set for attachments, see Task.Attachment.
	Container *AttachedContainer `json:",omitempty"`
}

// NetworkAttachment is a task's place in one network.
type NetworkAttachment struct {
	NetworkID  string
	Addresses  []netip.Prefix
	Aliases    []string
	DriverOpts map[string]string
}

// Network is a cluster-wide network. DriverState and IPAMOptions are what was
// allocated, written when it is created: no two networks have overlapping
// subnets or the same VXLAN id.
type Network struct {
	swarm.Network
	// Reserved are addresses of its subnets that nobody is given, by name
	// (--aux-address).
	Reserved map[string]netip.Addr `json:",omitempty"`
	// Predefined is set for networks that exist on every node without being
	// created (bridge, host, none): they can be attached to but not removed.
	Predefined bool
}

// Secret is sensitive data for containers. Spec.Data never leaves the managers
// except to the nodes that run a user of it.
type Secret struct{ swarm.Secret }

// Config is non-sensitive data for containers.
type Config struct{ swarm.Config }
