package api

import "net/netip"

// AttachedContainer is the container that a task of runtime "attachment" holds a
// place in a network for. It is not the swarm's: the task's node made it for a
// user, and says when it is gone.
type AttachedContainer struct {
	Name string
	// Addresses that were asked for, one a family at most.
	Addresses []netip.Addr `json:",omitempty"`
}

// Attachment reports whether the task is a place in a network for a container that
// a user runs on the node. There is nothing to schedule, to run or to restart: it
// is RUNNING from when it has its addresses until it is deleted.
func (t *Task) Attachment() bool { return t.Spec != nil && t.Spec.NetworkAttachmentSpec != nil }
