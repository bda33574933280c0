package store

import (
	"fmt"
	"strconv"

	"github.com/hashicorp/go-memdb"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// The names of indices. Keys end with a zero byte, so that a key is never the
// prefix of another.
const (
	indexID       = "id"
	indexName     = "name"
	indexNode     = "node"
	indexSlot     = "slot" // service, then slot
	indexDesired  = "desired"
	indexState    = "state"
	keyTerminator = "\x00"
)

// keyIndex indexes objects by a string. An object without a key is left out.
type keyIndex func(o any) (key string, ok bool)

func (k keyIndex) FromObject(o any) (bool, []byte, error) {
	key, ok := k(o)
	if !ok {
		return false, nil, nil
	}
	return true, []byte(key + keyTerminator), nil
}

func (k keyIndex) FromArgs(args ...any) ([]byte, error) {
	p, err := k.PrefixFromArgs(args...)
	return append(p, keyTerminator...), err
}

func (k keyIndex) PrefixFromArgs(args ...any) ([]byte, error) {
	s, ok := args[0].(string)
	if len(args) != 1 || !ok {
		return nil, fmt.Errorf("store: an index takes one string, not %v", args)
	}
	return []byte(s), nil
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for k := KindCluster; k.valid(); k++ {
		t := &memdb.TableSchema{Name: k.String(), Indexes: map[string]*memdb.IndexSchema{}}
		add := func(name string, unique bool, key keyIndex) {
			t.Indexes[name] = &memdb.IndexSchema{Name: name, Unique: unique, AllowMissing: !unique, Indexer: key}
		}
		add(indexID, true, func(o any) (string, bool) { return idOf(o), idOf(o) != "" })
		if k != KindTask {
			add(indexName, false, func(o any) (string, bool) { return fold(nameOf(o)), nameOf(o) != "" })
		} else {
			task := func(key func(t *api.Task) string) keyIndex {
				return func(o any) (string, bool) { s := key(o.(*api.Task)); return s, s != "" }
			}
			add(indexNode, false, task(func(t *api.Task) string { return t.NodeID }))
			add(indexSlot, false, task(func(t *api.Task) string { return slotKey(t.ServiceID, t.Slot) }))
			add(indexDesired, false, task(func(t *api.Task) string { return string(t.DesiredState) }))
			add(indexState, false, task(func(t *api.Task) string { return string(t.Status.State) }))
		}
		s.Tables[t.Name] = t
	}
	return s
}

func slotKey(service string, slot int) string { return service + "/" + strconv.Itoa(slot) }

// By selects objects in List and Count.
type By struct {
	index  string
	key    string
	prefix bool
	match  func(o any) bool // where there is no index
}

// ByName selects by name, whatever its case (nodes: by host name).
func ByName(name string) By { return By{index: indexName, key: fold(name)} }

// ByNamePrefix selects by the beginning of the name, whatever its case.
func ByNamePrefix(p string) By { return By{index: indexName, key: fold(p), prefix: true} }

// ByIDPrefix selects by the beginning of the id.
func ByIDPrefix(p string) By { return By{index: indexID, key: p, prefix: true} }

// ByService selects a service's tasks.
func ByService(id string) By { return By{index: indexSlot, key: id + "/", prefix: true} }

// BySlot selects the tasks of a service's slot.
func BySlot(service string, slot int) By { return By{index: indexSlot, key: slotKey(service, slot)} }

// ByNode selects the tasks assigned to a node.
func ByNode(id string) By { return By{index: indexNode, key: id} }

// ByDesiredState selects tasks.
func ByDesiredState(s swarm.TaskState) By { return By{index: indexDesired, key: string(s)} }

// ByTaskState selects tasks by their status.
func ByTaskState(s swarm.TaskState) By { return By{index: indexState, key: string(s)} }

// ByNetwork selects the services and tasks that are attached to a network.
func ByNetwork(id string) By {
	return By{index: indexID, prefix: true, match: func(o any) bool {
		switch o := o.(type) {
		case *api.Service:
			return usesNetwork(&o.Spec.TaskTemplate, id)
		case *api.Task:
			return usesNetwork(&o.Spec.TaskSpec, id)
		}
		return false
	}}
}

func usesNetwork(s *swarm.TaskSpec, id string) bool {
	for _, n := range s.Networks {
		if n.Target == id {
			return true
		}
	}
	return false
}

// BySecret selects the services and tasks that use a secret.
func BySecret(id string) By {
	return byContainer(func(c *swarm.ContainerSpec) bool { return usesSecret(c, id) })
}

// ByConfig selects the services and tasks that use a config.
func ByConfig(id string) By {
	return byContainer(func(c *swarm.ContainerSpec) bool { return usesConfig(c, id) })
}

func byContainer(match func(*swarm.ContainerSpec) bool) By {
	return By{index: indexID, prefix: true, match: func(o any) bool {
		var c *swarm.ContainerSpec
		switch o := o.(type) {
		case *api.Service:
			c = o.Spec.TaskTemplate.ContainerSpec
		case *api.Task:
			c = o.Spec.ContainerSpec
		}
		return c != nil && match(c)
	}}
}

func usesSecret(c *swarm.ContainerSpec, id string) bool {
	for _, s := range c.Secrets {
		if s != nil && s.SecretID == id {
			return true
		}
	}
	return false
}

func usesConfig(c *swarm.ContainerSpec, id string) bool {
	for _, r := range c.Configs {
		if r != nil && r.ConfigID == id {
			return true
		}
	}
	return false
}
