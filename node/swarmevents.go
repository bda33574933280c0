package node

import (
	"maps"
	"reflect"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/legion-swarm/legion/api"
)

// swarmEvent says what Docker's event stream (scope swarm) tells of a change
// in the store; false for changes that it does not tell. Either of before and
// after may be nil.
func swarmEvent(before, after any, now time.Time) (events.Message, bool) {
	m := events.Message{Scope: scopeSwarm, Time: now.Unix(), TimeNano: now.UnixNano()}
	object := after
	switch {
	case before == nil:
		m.Action = events.ActionCreate
	case after == nil:
		m.Action = events.ActionRemove
		object = before
	default:
		m.Action = events.ActionUpdate
	}
	attrs := map[string]string{}
	switch o := object.(type) {
	case *api.Service:
		m.Type, m.Actor.ID, attrs["name"] = events.ServiceEventType, o.ID, o.Spec.Name
		if old, ok := before.(*api.Service); ok && after != nil && !serviceDiff(attrs, old, o) {
			return m, false
		}
	case *api.Node:
		m.Type, m.Actor.ID, attrs["name"] = events.NodeEventType, o.ID, o.Description.Hostname
		if old, ok := before.(*api.Node); ok && after != nil && !nodeDiff(attrs, old, o) {
			return m, false
		}
	case *api.Network:
		m.Type, m.Actor.ID, attrs["name"] = events.NetworkEventType, o.ID, o.Spec.Name
	case *api.Secret:
		m.Type, m.Actor.ID, attrs["name"] = events.SecretEventType, o.ID, o.Spec.Name
	case *api.Config:
		m.Type, m.Actor.ID, attrs["name"] = events.ConfigEventType, o.ID, o.Spec.Name
	default:
		return m, false
	}
	m.Actor.Attributes = attrs
	return m, true
}

// serviceDiff notes what Docker tells of a service's update, and reports
// whether there is anything to tell: what the allocator adds is not.
func serviceDiff(attrs map[string]string, old, cur *api.Service) bool {
	diff(attrs, "image", image(old), image(cur))
	diff(attrs, "replicas", replicas(old), replicas(cur))
	diff(attrs, "updatestate", updateState(old), updateState(cur))
	return len(attrs) > 1 || !reflect.DeepEqual(old.Spec, cur.Spec)
}

func image(s *api.Service) string {
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		return c.Image
	}
	return ""
}

func replicas(s *api.Service) string {
	if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return strconv.FormatUint(*r.Replicas, 10)
	}
	return ""
}

func updateState(s *api.Service) string {
	if s.UpdateStatus == nil {
		return ""
	}
	return string(s.UpdateStatus.State)
}

// nodeDiff notes what Docker tells of a node's update. Certificates and
// addresses change without a word.
func nodeDiff(attrs map[string]string, old, cur *api.Node) bool {
	diff(attrs, "availability", string(old.Spec.Availability), string(cur.Spec.Availability))
	diff(attrs, "role", string(old.Spec.Role), string(cur.Spec.Role))
	diff(attrs, "state", string(old.Status.State), string(cur.Status.State))
	return len(attrs) > 1 || !maps.Equal(old.Spec.Labels, cur.Spec.Labels)
}

func diff(attrs map[string]string, key, old, cur string) {
	if old != cur {
		attrs[key+".old"], attrs[key+".new"] = old, cur
	}
}
