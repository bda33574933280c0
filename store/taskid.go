package store

import (
	"cmp"
	"encoding/binary"

	"github.com/legion-swarm/legion/api"
)

// maxTaskID is how long a task's id may be: that of api.NewID.
const maxTaskID = 25

// taskID is a task's id as numbers, in the order of ids: the bytes, with zeros
// after them; in tail, below the group of an entry of an index, the last byte
// and the length. There are a million, so they hold no pointer that the garbage
// collector would have to follow.
type taskID struct{ a, b, c, tail uint64 }

const groupShift = 16

// taskIDOf returns no id for one that is too long: there is no such task.
func taskIDOf(id string) (k taskID, ok bool) {
	if len(id) > maxTaskID {
		return k, false
	}
	var buf [maxTaskID]byte
	copy(buf[:], id)
	return taskID{
		binary.BigEndian.Uint64(buf[:]), binary.BigEndian.Uint64(buf[8:]), binary.BigEndian.Uint64(buf[16:]),
		uint64(buf[24])<<8 | uint64(len(id)),
	}, true
}

func (k taskID) group() uint64 { return k.tail >> groupShift }

// in returns the id as an entry of a group.
func (k taskID) in(group uint64) taskID {
	k.tail = k.tail&(1<<groupShift-1) | group<<groupShift
	return k
}

func (k taskID) cmp(o taskID) int {
	switch {
	case k.group() != o.group():
		return cmp.Compare(k.group(), o.group())
	case k.a != o.a:
		return cmp.Compare(k.a, o.a)
	case k.b != o.b:
		return cmp.Compare(k.b, o.b)
	case k.c != o.c:
		return cmp.Compare(k.c, o.c)
	}
	return cmp.Compare(k.tail, o.tail)
}

// slotID is a task in its service's order; the group is the service's.
type slotID struct {
	taskID
	slot int
}

func (k slotID) cmp(o slotID) int {
	if k.slot != o.slot && k.group() == o.group() {
		return cmp.Compare(k.slot, o.slot)
	}
	return k.taskID.cmp(o.taskID)
}

// taskItem is a task in the order of ids.
type taskItem struct {
	head uint64 // as taskID has it
	task *api.Task
}

func (i taskItem) cmp(k taskID) int {
	if i.head != k.a {
		return cmp.Compare(i.head, k.a)
	}
	id, _ := taskIDOf(i.task.ID)
	return id.cmp(k)
}

// groups numbers what an index lists tasks by, as long as there are any.
type groups struct {
	numbers tree[idKey, group]
	last    uint64
}

type group struct {
	idKey
	number uint64 // from 1, never used again, less than 1<<48
}

// of returns the number; 0: no task is listed by the name.
func (g *groups) of(name string) uint64 {
	it, _ := g.numbers.get(keyOf(name))
	return it.number
}

// open is of, for a task that is to be listed.
func (g *groups) open(e edit, name string) uint64 {
	if n := g.of(name); n != 0 {
		return n
	}
	g.last++
	key := keyOf(name)
	g.numbers.set(e, key, group{key, g.last})
	return g.last
}

func (g *groups) close(e edit, name string) { g.numbers.remove(e, keyOf(name)) }
