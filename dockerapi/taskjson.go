package dockerapi

import (
	"bytes"

	"github.com/moby/moby/api/types/swarm"
)

// taskHead and taskTail are swarm.Task before and after its Spec; a test holds
// them against it.
type taskHead struct {
	ID string
	swarm.Meta
	swarm.Annotations
}

type taskTail struct {
	ServiceID           string                    `json:",omitempty"`
	Slot                int                       `json:",omitempty"`
	NodeID              string                    `json:",omitempty"`
	Status              swarm.TaskStatus          `json:",omitempty"`
	DesiredState        swarm.TaskState           `json:",omitempty"`
	NetworksAttachments []swarm.NetworkAttachment `json:",omitempty"`
	GenericResources    []swarm.GenericResource   `json:",omitempty"`
	JobIteration        *swarm.Version            `json:",omitempty"`
	Volumes             []swarm.VolumeAttachment
}

// specKey tells specs apart by what they share: two task specs with the same
// key are the same value, as specs are never edited in place.
type specKey struct {
	container *swarm.ContainerSpec
	plugin    *swarm.RuntimeSpec
	attach    *swarm.NetworkAttachmentSpec
	resources *swarm.ResourceRequirements
	restart   *swarm.RestartPolicy
	placement *swarm.Placement
	network   *swarm.NetworkAttachmentConfig // the first
	networks  int
	log       *swarm.Driver
	force     uint64
	runtime   swarm.RuntimeType
}

func keyOf(s *swarm.TaskSpec) specKey {
	k := specKey{
		s.ContainerSpec, s.PluginSpec, s.NetworkAttachmentSpec, s.Resources, s.RestartPolicy, s.Placement,
		nil, len(s.Networks), s.LogDriver, s.ForceUpdate, s.Runtime,
	}
	if k.networks > 0 {
		k.network = &s.Networks[0]
	}
	return k
}

// taskEncoder appends tasks as JSON, byte for byte as encoding/json does.
// Tasks of one service version share their spec, which is most of a task: its
// JSON is made once and used again. For one answer, not for concurrent use.
type taskEncoder struct {
	version Version
	specs   map[specKey][]byte
	head    taskHead
	tail    taskTail
}

func (e *taskEncoder) encode(b *buffer, t *swarm.Task) error {
	e.head = taskHead{t.ID, t.Meta, t.Annotations}
	if err := b.encodeOne(&e.head); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the closing brace
	b.WriteString(`,"Spec":`)
	if err := e.spec(b, &t.Spec); err != nil {
		return err
	}
	e.tail = taskTail{
		t.ServiceID, t.Slot, t.NodeID, t.Status, t.DesiredState,
		t.NetworksAttachments, t.GenericResources, t.JobIteration, t.Volumes,
	}
	at := b.Len()
	if err := b.encodeOne(&e.tail); err != nil {
		return err
	}
	b.Bytes()[at] = ',' // in place of the opening brace: the tail is never empty
	return nil
}

func (e *taskEncoder) spec(b *buffer, s *swarm.TaskSpec) error {
	k := keyOf(s)
	if known, ok := e.specs[k]; ok {
		b.Write(known)
		return nil
	}
	at := b.Len()
	shown := taskSpecFor(e.version, shownTaskSpec(*s))
	if err := b.encodeOne(&shown); err != nil {
		return err
	}
	if e.specs == nil {
		e.specs = map[specKey][]byte{}
	}
	e.specs[k] = bytes.Clone(b.Bytes()[at:])
	return nil
}
