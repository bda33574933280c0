package node

import (
	"cmp"
	"reflect"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

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
	update := before != nil && after != nil
	switch o := object.(type) {
	case *api.Service:
		m.Type, m.Actor.ID, attrs["name"] = events.ServiceEventType, o.ID, o.Spec.Name
		if update && !serviceDiff(attrs, before.(*api.Service), o) {
			return m, false
		}
	case *api.Node:
		m.Type, m.Actor.ID, attrs["name"] = events.NodeEventType, o.ID, nodeName(o)
		if update && !nodeDiff(attrs, before.(*api.Node), o) {
			return m, false
		}
	case *api.Network:
		m.Type, m.Actor.ID, attrs["name"] = events.NetworkEventType, o.ID, o.Spec.Name
		if update && reflect.DeepEqual(before.(*api.Network).Spec, o.Spec) {
			return m, false
		}
	case *api.Secret:
		m.Type, m.Actor.ID, attrs["name"] = events.SecretEventType, o.ID, o.Spec.Name
		if update && reflect.DeepEqual(before.(*api.Secret).Spec, o.Spec) {
			return m, false
		}
	case *api.Config:
		m.Type, m.Actor.ID, attrs["name"] = events.ConfigEventType, o.ID, o.Spec.Name
		if update && reflect.DeepEqual(before.(*api.Config).Spec, o.Spec) {
			return m, false
		}
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
	if was, is := replicas(old), replicas(cur); was != "" && is != "" {
		diff(attrs, "replicas", was, is)
	}
	was, is := updateState(old), updateState(cur)
	if is != "" && was != is {
		attrs["updatestate.new"] = is
		if was != "" {
			attrs["updatestate.old"] = was
		}
	}
	return len(attrs) > 1 || iteration(old) != iteration(cur) || !reflect.DeepEqual(old.Spec, cur.Spec)
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

func iteration(s *api.Service) uint64 {
	if s.JobStatus == nil {
		return 0
	}
	return s.JobStatus.JobIteration.Index
}

// nodeName is the name that a node was given, or its host's.
func nodeName(n *api.Node) string { return cmp.Or(n.Spec.Name, n.Description.Hostname) }

// nodeDiff notes what Docker tells of a node's update. Certificates, addresses
// and sessions change without a word.
func nodeDiff(attrs map[string]string, old, cur *api.Node) bool {
	diff(attrs, "availability", string(old.Spec.Availability), string(cur.Spec.Availability))
	diff(attrs, "role", string(old.Role), string(cur.Role))
	diff(attrs, "state", string(old.Status.State), string(cur.Status.State))
	return len(attrs) > 1 || !reflect.DeepEqual(old.Spec, cur.Spec) || !reflect.DeepEqual(old.Description, cur.Description)
}

// managerEvent says what Docker tells of a manager that leads or does not, or can
// or can't be reached; false for nothing.
func managerEvent(n *api.Node, old, cur swarm.ManagerStatus, now time.Time) (events.Message, bool) {
	attrs := map[string]string{"name": nodeName(n)}
	diff(attrs, "leader", strconv.FormatBool(old.Leader), strconv.FormatBool(cur.Leader))
	diff(attrs, "reachability", string(old.Reachability), string(cur.Reachability))
	return events.Message{
		Type: events.NodeEventType, Action: events.ActionUpdate, Scope: scopeSwarm, Time: now.Unix(), TimeNano: now.UnixNano(),
		Actor: events.Actor{ID: n.ID, Attributes: attrs},
	}, len(attrs) > 1
}

func diff(attrs map[string]string, key, old, cur string) {
	if old != cur {
		attrs[key+".old"], attrs[key+".new"] = old, cur
	}
}
