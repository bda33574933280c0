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
	indexNetwork  = "network" // and so on: what a spec uses
	indexSecret   = "secret"
	indexConfig   = "config"
	keyTerminator = "\x00"
)

// tableSpec has the specs that tasks share, see specRow.
const tableSpec = "spec"

// common is the state that nearly all tasks are in: there is no index of these,
// which would take a third of the memory of all tasks.
const common = swarm.TaskStateRunning

// specRow is a spec that tasks share. It is there as long as a task has it.
type specRow struct {
	key     string // specKey of the tasks
	service string // "": key is the id of the only task
	spec    *api.TaskSpec
}

func newSpecRow(t *api.Task, spec *api.TaskSpec) *specRow {
	return &specRow{key: specKey(t), service: t.ServiceID, spec: spec}
}

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

// manyIndex indexes objects by several strings.
type manyIndex func(o any) []string

func (k manyIndex) FromObject(o any) (bool, [][]byte, error) {
	var keys [][]byte
	for _, key := range k(o) {
		if key != "" {
			keys = append(keys, []byte(key+keyTerminator))
		}
	}
	return len(keys) > 0, keys, nil
}

func (k manyIndex) FromArgs(args ...any) ([]byte, error) { return keyIndex(nil).FromArgs(args...) }

func table(name string, id keyIndex, others map[string]memdb.Indexer) *memdb.TableSchema {
	t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{
		indexID: {Name: indexID, Unique: true, Indexer: id},
	}}
	for name, by := range others {
		t.Indexes[name] = &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: by}
	}
	return t
}

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	s.Tables[tableSpec] = table(tableSpec, func(o any) (string, bool) { return o.(*specRow).key, true },
		uses(func(o any) *swarm.TaskSpec { return &o.(*specRow).spec.TaskSpec }))
	for k := KindCluster; k.valid(); k++ {
		others := map[string]memdb.Indexer{}
		switch k {
		case KindTask:
			others = taskIndices()
		case KindService:
			others = uses(func(o any) *swarm.TaskSpec { return &o.(*api.Service).Spec.TaskTemplate })
		}
		if k != KindTask {
			others[indexName] = keyIndex(func(o any) (string, bool) { return fold(nameOf(o)), nameOf(o) != "" })
		}
		s.Tables[k.String()] = table(k.String(), func(o any) (string, bool) { return idOf(o), idOf(o) != "" }, others)
	}
	return s
}

func taskIndices() map[string]memdb.Indexer {
	by := func(key func(t *api.Task) string) memdb.Indexer {
		return keyIndex(func(o any) (string, bool) { s := key(o.(*api.Task)); return s, s != "" })
	}
	rare := func(s swarm.TaskState) string {
		if s == common {
			return ""
		}
		return string(s)
	}
	return map[string]memdb.Indexer{
		indexNode:    by(func(t *api.Task) string { return t.NodeID }),
		indexSlot:    by(func(t *api.Task) string { return slotKey(t.ServiceID, t.Slot) }),
		indexDesired: by(func(t *api.Task) string { return rare(t.DesiredState) }),
		indexState:   by(func(t *api.Task) string { return rare(t.Status.State) }),
	}
}

// uses makes the indices of what a spec refers to.
func uses(spec func(o any) *swarm.TaskSpec) map[string]memdb.Indexer {
	return map[string]memdb.Indexer{
		indexNetwork: manyIndex(func(o any) (ids []string) {
			for _, n := range spec(o).Networks {
				ids = append(ids, n.Target)
			}
			return ids
		}),
		indexSecret: manyIndex(func(o any) (ids []string) {
			if c := spec(o).ContainerSpec; c != nil {
				for _, s := range c.Secrets {
					if s != nil {
						ids = append(ids, s.SecretID)
					}
				}
			}
			return ids
		}),
		indexConfig: manyIndex(func(o any) (ids []string) {
			if c := spec(o).ContainerSpec; c != nil {
				for _, s := range c.Configs {
					if s != nil {
						ids = append(ids, s.ConfigID)
					}
				}
			}
			return ids
		}),
	}
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
func ByDesiredState(s swarm.TaskState) By {
	if s == common {
		return scan(func(t *api.Task) bool { return t.DesiredState == s })
	}
	return By{index: indexDesired, key: string(s)}
}

// ByTaskState selects tasks by their status.
func ByTaskState(s swarm.TaskState) By {
	if s == common {
		return scan(func(t *api.Task) bool { return t.Status.State == s })
	}
	return By{index: indexState, key: string(s)}
}

func scan(match func(t *api.Task) bool) By {
	return By{index: indexID, prefix: true, match: func(o any) bool {
		t, ok := o.(*api.Task)
		return ok && match(t)
	}}
}

// ByNetwork selects the services and tasks whose spec names a network.
func ByNetwork(id string) By { return By{index: indexNetwork, key: id} }

// BySecret selects the services and tasks that use a secret.
func BySecret(id string) By { return By{index: indexSecret, key: id} }

// ByConfig selects the services and tasks that use a config.
func ByConfig(id string) By { return By{index: indexConfig, key: id} }

// ofSpec reports whether it selects by what a spec refers to.
func (by By) ofSpec() bool {
	return by.index == indexNetwork || by.index == indexSecret || by.index == indexConfig
}
