package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// ServiceVersion is an earlier version of a service, kept for as long as its
// policy says. It is written once, when another takes its place.
type ServiceVersion struct {
	// ID is VersionID of the service and number: in the order of ids, a service's
	// versions are together, oldest first.
	ID string
	swarm.Meta

	ServiceID string
	Number    uint64
	Spec      swarm.ServiceSpec
	// SpecVersion is what tasks made of it remember.
	SpecVersion  uint64
	RegistryAuth string
	// Since is when it became the service's spec.
	Since time.Time
	// Size of the spec, in bytes of JSON.
	Size int
}

// VersionID names a version of a service.
func VersionID(service string, number uint64) string {
	return fmt.Sprintf("%s%020d", VersionPrefix(service), number)
}

// VersionPrefix begins the ids of all versions of a service.
func VersionPrefix(service string) string { return service + "/" }

// Archive returns the service's present version, as it is kept when another
// takes its place.
func (s *Service) Archive() *ServiceVersion {
	v := &ServiceVersion{
		ID: VersionID(s.ID, s.Number), ServiceID: s.ID, Number: s.Number, Spec: s.Spec,
		SpecVersion: s.SpecVersion, RegistryAuth: s.RegistryAuth, Since: s.SpecSince,
	}
	if b, err := json.Marshal(&v.Spec); err == nil { // it came as JSON
		v.Size = len(b)
	}
	return v
}

// VersionInfo is a version of a service as its history tells it.
type VersionInfo struct {
	Number  uint64 `json:"Version"`
	Since   time.Time
	Current bool
	Image   string
	// Changes against the version before, in users' words; nothing for the
	// oldest that is kept.
	Changes []string
	Spec    *swarm.ServiceSpec
}

// ServicePlan says what a change to a service would do.
type ServicePlan struct {
	// ID is empty for a service that would be made.
	ID   string `json:",omitempty"`
	Name string
	// Changes of the spec, in users' words.
	Changes []string
	// Tasks that would be made, replaced or ended, by slot or node.
	Tasks []PlannedTask
	// Unchanged counts the tasks that would stay.
	Unchanged int
	// Refused are the nodes that can't take a task of the new spec, and why.
	Refused []NodeRefusal
	// Notes say how the change would go on: how many at a time, canaries.
	Notes []string
}

// PlannedAction is what a change does to a task.
type PlannedAction string

// The actions.
const (
	PlannedCreate  PlannedAction = "create"
	PlannedReplace PlannedAction = "replace"
	PlannedEnd     PlannedAction = "end"
)

// PlannedTask is a place of a service that a change concerns.
type PlannedTask struct {
	// Name is the service's, and the slot's number or the node's id.
	Name   string
	Action PlannedAction
	// TaskID and From are the task there is, and its node's host name.
	TaskID, From string `json:",omitempty"`
	// To is the host name of the node that the new task would go to; empty if
	// there is none, and then Why says why.
	To, Why string `json:",omitempty"`
}

// NodeRefusal is a node that can't take a service's tasks.
type NodeRefusal struct{ NodeID, Hostname, Why string }
