package store

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// A task is the object that there are a million of and that is written most, so
// it has an encoding of its own: format, then its fields in the order of
// appendTask, without its spec. A new field makes a new format, which older
// managers refuse.
const taskFormat = 1

// taskSize is enough bytes for most.
const taskSize = 256

// taskRest is what few tasks have, as JSON.
type taskRest struct {
	Ports            []swarm.PortConfig       `json:",omitempty"`
	PortStatus       []swarm.PortConfig       `json:",omitempty"`
	GenericResources []swarm.GenericResource  `json:",omitempty"`
	JobIteration     *swarm.Version           `json:",omitempty"`
	Volumes          []swarm.VolumeAttachment `json:",omitempty"`
	Evicted          string                   `json:",omitempty"`
	MovedFrom        string                   `json:",omitempty"`
	Ran              time.Duration            `json:",omitempty"`
}

func appendTask(b []byte, t *api.Task) ([]byte, error) {
	b = append(b, taskFormat)
	b = appendString(b, t.ID)
	b = appendString(b, t.ServiceID)
	b = binary.AppendVarint(b, int64(t.Slot))
	b = appendString(b, t.NodeID)
	b = binary.AppendUvarint(b, t.SpecVersion)
	b = binary.AppendUvarint(b, t.Version.Index)
	b = appendTime(b, t.CreatedAt)
	b = appendTime(b, t.UpdatedAt)
	b = appendTime(b, t.NotBefore)
	b = appendState(b, t.DesiredState)
	b = appendState(b, t.Status.State)
	b = appendTime(b, t.Status.Timestamp)
	b = appendString(b, t.Status.Message)
	b = appendString(b, t.Status.Err)
	if c := t.Status.ContainerStatus; c == nil {
		b = append(b, 0)
	} else {
		b = appendString(append(b, 1), c.ContainerID)
		b = binary.AppendVarint(b, int64(c.PID))
		b = binary.AppendVarint(b, int64(c.ExitCode))
	}
	b = binary.AppendUvarint(b, uint64(len(t.Networks)))
	for i := range t.Networks {
		var err error
		if b, err = appendAttachment(b, &t.Networks[i]); err != nil {
			return nil, err
		}
	}
	rest := taskRest{t.Ports, t.Status.PortStatus.Ports, t.GenericResources, t.JobIteration, t.Volumes, t.Evicted, t.MovedFrom, t.Ran}
	if len(rest.Ports)+len(rest.PortStatus)+len(rest.GenericResources)+len(rest.Volumes)+len(rest.Evicted)+len(rest.MovedFrom) == 0 && rest.JobIteration == nil && rest.Ran == 0 {
		return append(b, 0), nil
	}
	j, err := json.Marshal(rest)
	return appendString(b, j), err
}

func appendAttachment(b []byte, n *api.NetworkAttachment) ([]byte, error) {
	b = appendString(b, n.NetworkID)
	b = binary.AppendUvarint(b, uint64(len(n.Addresses)))
	for _, a := range n.Addresses {
		p, err := a.MarshalBinary()
		if err != nil {
			return nil, err
		}
		b = appendString(b, p)
	}
	b = binary.AppendUvarint(b, uint64(len(n.Aliases)))
	for _, a := range n.Aliases {
		b = appendString(b, a)
	}
	b = binary.AppendUvarint(b, uint64(len(n.DriverOpts)))
	for _, k := range slices.Sorted(maps.Keys(n.DriverOpts)) {
		b = appendString(appendString(b, k), n.DriverOpts[k])
	}
	return b, nil
}

// appendTime writes 0 for no time, else 1, seconds and nanoseconds.
func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	b = binary.AppendVarint(append(b, 1), t.Unix())
	return binary.AppendUvarint(b, uint64(t.Nanosecond()))
}

// appendState writes a state's rank plus 2; 0 for none. A state without a rank
// is 1 and its name.
func appendState(b []byte, s swarm.TaskState) []byte {
	switch rank := api.Rank(s); {
	case s == "":
		return append(b, 0)
	case rank < 0:
		return appendString(append(b, 1), string(s))
	default:
		return binary.AppendUvarint(b, uint64(rank)+2)
	}
}

// runningTask is a task with what most of them have apart from it, side by side
// in memory: two objects less for the garbage collector to look at.
type runningTask struct {
	task      api.Task
	container swarm.ContainerStatus
}

func decodeTask(body []byte, in *intern) (*api.Task, error) {
	d := &decoder{b: body, in: in}
	if f := d.byte(); f != taskFormat {
		d.fail(fmt.Sprintf("task in unknown format %d: written by a newer version?", f))
	}
	id := d.bytes()
	if len(id) > maxTaskID {
		d.fail(fmt.Sprintf("a task's id of %d bytes", len(id)))
	}
	var head api.Task
	head.ServiceID, head.Slot, head.NodeID, head.SpecVersion = d.shared(), d.int(), d.shared(), d.uvarint()
	head.Version.Index = d.uvarint()
	head.CreatedAt, head.UpdatedAt, head.NotBefore = d.time(), d.time(), d.time()
	head.DesiredState, head.Status.State = d.state(), d.state()
	head.Status.Timestamp, head.Status.Message, head.Status.Err = d.time(), d.shared(), d.shared()
	var t *api.Task
	if d.flag() {
		r := &runningTask{task: head}
		container := d.bytes()
		var buf [maxTaskID + 64]byte
		both := string(append(append(buf[:0], id...), container...))
		r.container = swarm.ContainerStatus{ContainerID: both[len(id):], PID: d.int(), ExitCode: d.int()}
		t = &r.task
		t.ID, t.Status.ContainerStatus = both[:len(id)], &r.container
	} else {
		t = new(api.Task)
		*t = head
		t.ID = string(id)
	}
	if n := d.count(4); n > 0 {
		t.Networks = make([]api.NetworkAttachment, n)
		for i := range t.Networks {
			d.attachment(&t.Networks[i])
		}
	}
	if j := d.bytes(); len(j) > 0 {
		var rest taskRest
		if err := strictJSON(j, &rest); err != nil {
			d.fail(err.Error())
		}
		t.Ports, t.Status.PortStatus.Ports, t.GenericResources = rest.Ports, rest.PortStatus, rest.GenericResources
		t.JobIteration, t.Volumes = rest.JobIteration, rest.Volumes
		t.Evicted, t.MovedFrom, t.Ran = rest.Evicted, rest.MovedFrom, rest.Ran
	}
	return t, d.end()
}

func (d *decoder) attachment(n *api.NetworkAttachment) {
	n.NetworkID = d.shared()
	for range d.count(1) {
		var p netip.Prefix
		if err := p.UnmarshalBinary(d.bytes()); err != nil {
			d.fail(err.Error())
		}
		n.Addresses = append(n.Addresses, p)
	}
	for range d.count(1) {
		n.Aliases = append(n.Aliases, d.shared())
	}
	if c := d.count(2); c > 0 {
		n.DriverOpts = make(map[string]string, c)
		for range c {
			k := d.shared()
			n.DriverOpts[k] = d.shared()
		}
	}
}

func (d *decoder) time() time.Time {
	if !d.flag() {
		return time.Time{}
	}
	sec, nsec := d.varint(), d.uvarint()
	if nsec >= 1e9 {
		d.fail("bad time")
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}

func (d *decoder) state() swarm.TaskState {
	switch n := d.uvarint(); n {
	case 0:
		return ""
	case 1:
		return swarm.TaskState(d.shared())
	default:
		s, ok := api.StateOfRank(int(min(n-2, 1<<20)))
		if !ok {
			d.fail(fmt.Sprintf("unknown task state %d: written by a newer version?", n-2))
		}
		return s
	}
}

// intern makes equal strings share memory: there are many tasks for each
// service, node and message.
type intern struct{ seen map[string]string }

const maxInterned = 1 << 16

func (in *intern) get(b []byte) string {
	if in == nil {
		return string(b)
	}
	if s, ok := in.seen[string(b)]; ok {
		return s
	}
	if in.seen == nil || len(in.seen) >= maxInterned {
		in.seen = map[string]string{}
	}
	s := string(b)
	in.seen[s] = s
	return s
}
