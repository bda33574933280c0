package api

import "strconv"

// Name returns the task's name as Docker gives it: SERVICE.SLOT.TASKID, with
// the node's id in place of the slot for tasks of global services. An attachment
// has its container's name.
func (t *Task) Name() string {
	if t.Attachment() && t.Spec.Container != nil {
		return t.Spec.Container.Name
	}
	slot := t.NodeID
	if !t.Spec.Global {
		slot = strconv.Itoa(t.Slot)
	}
	return t.Spec.ServiceName + "." + slot + "." + t.ID
}
