package dispatcher

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// tellAfter is how long a node may be lost before its followers are told: it
	// may just be going over to another manager.
	tellAfter = 3 * time.Second
	maxNotes  = 1000 // that a follower has not read
)

// errSlow ends a wait for a node that is there.
var errSlow = errors.New("the node has not sent more yet")

// miss notes that a node's logs can't be had.
func (s *subscription) miss(node, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.missing[node]; a != nil {
		a.why = why
		return
	}
	a := &absence{why: why, at: time.Now()}
	if s.feeds[node] == nil { // it was not there to begin with
		a.at = time.Time{}
	}
	s.missing[node] = a
}

// silent notes what a node says of output that it can't send.
func (s *subscription) silent(m *swarmpb.LogMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	where, why := m.GetContext(), string(m.GetData())
	key := where.GetTaskId()
	if key == "" {
		key = where.GetNodeId()
	}
	if s.mute[key] == why || len(s.mute) >= maxNotes {
		return
	}
	s.mute[key] = why
	s.note(LogMessage{NodeID: where.GetNodeId(), TaskID: where.GetTaskId(), Data: []byte("can't be read: " + why)})
}

// note keeps what to tell a follower. Called with mu held.
func (s *subscription) note(m LogMessage) {
	if s.options.Follow && len(s.notes) < maxNotes {
		m.Note, m.Stream = true, "stderr"
		s.notes = append(s.notes, m)
	}
}

// told returns what the follower is to be told now.
func (s *subscription) told(now time.Time) []LogMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(s.missing)) {
		if a := s.missing[id]; !a.told && now.Sub(a.at) >= tellAfter {
			a.told = true
			s.note(LogMessage{NodeID: id, Data: []byte("can't be read: " + a.why + "; they will follow when they can")})
		}
	}
	notes := s.notes
	s.notes = nil
	if len(notes) == 0 {
		return nil
	}
	view := s.b.store.View()
	for i := range notes {
		s.address(view, &notes[i])
	}
	return notes
}

// address says whose logs a note is about, and gives it a task as its source:
// clients look for one.
func (s *subscription) address(view *store.View, m *LogMessage) {
	m.At = time.Now()
	about := "[legion] the logs of node " + nodeName(view, m.NodeID)
	if m.TaskID != "" {
		about = "[legion] the logs of this task"
	}
	m.Data = slices.Concat([]byte(about+" "), m.Data, []byte("\n"))
	if t := store.Get[*api.Task](view, m.TaskID); t != nil {
		m.ServiceID = t.ServiceID
		return
	}
	m.TaskID = ""
	for t := range s.tasks(view) {
		if t.NodeID == m.NodeID {
			m.ServiceID, m.TaskID = t.ServiceID, t.ID
			return
		}
	}
}

// incomplete is the error that says what was missing; nil for nothing.
func (s *subscription) incomplete() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.missing)+len(s.mute) == 0 {
		return nil
	}
	view := s.b.store.View()
	var reasons []string
	for _, id := range slices.Sorted(maps.Keys(s.missing)) {
		reasons = append(reasons, fmt.Sprintf("node %s: %s", nodeName(view, id), s.missing[id].why))
	}
	for _, id := range slices.Sorted(maps.Keys(s.mute)) {
		name := "node " + nodeName(view, id)
		if t := store.Get[*api.Task](view, id); t != nil {
			name = fmt.Sprintf("task %s on node %s", t.Name(), nodeName(view, t.NodeID))
		}
		reasons = append(reasons, name+": "+s.mute[id])
	}
	return api.Errorf(api.Unavailable, "incomplete logs: some could not be retrieved: %s", strings.Join(reasons, "; "))
}

// nodeName is what people call a node.
func nodeName(view *store.View, id string) string {
	if n := store.Get[*api.Node](view, id); n != nil && n.Description.Hostname != "" {
		return n.Description.Hostname + " (" + id + ")"
	}
	return id
}
