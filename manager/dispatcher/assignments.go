package dispatcher

import (
	"strconv"
	"sync"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// Assignments implements the Dispatcher service.
func (d *Dispatcher) Assignments(req *swarmpb.AssignmentsRequest, stream swarmpb.Dispatcher_AssignmentsServer) error {
	ctx := stream.Context()
	s, err := d.current(ctx, req.GetSessionId())
	if err != nil {
		return err
	}
	s.mu.Lock()
	twice := s.assigning
	s.assigning, s.all = true, true
	s.mu.Unlock()
	if twice {
		return api.Errorf(api.Conflict, "session %s has an assignments stream already", s.id)
	}
	defer func() {
		s.mu.Lock()
		s.assigning = false
		s.mu.Unlock()
	}()
	set := newAssignmentSet(s.node, d.specs)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for sequence := 0; ; {
		all, ids := s.marked()
		changes := set.update(d.cfg.Store.View(), all, ids)
		if len(changes) > 0 || sequence == 0 {
			if err := stream.Send(message(changes, sequence)); err != nil {
				return err
			}
			sequence++
			timer.Reset(d.gap())
			select {
			case <-timer.C:
			case <-s.ended:
				return s.cause
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-s.taskWake:
		case <-s.ended:
			return s.cause
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// gap is how long a session gathers after a message.
func (d *Dispatcher) gap() time.Duration {
	d.mu.Lock()
	nodes := len(d.nodes)
	d.mu.Unlock()
	return d.pace.sent(time.Now(), nodes)
}

// message makes the message of this place in the stream: the first is complete.
func message(changes []*swarmpb.AssignmentChange, sequence int) *swarmpb.AssignmentsMessage {
	m := &swarmpb.AssignmentsMessage{ResultsIn: strconv.Itoa(sequence + 1), Changes: changes}
	if sequence > 0 {
		m.Type, m.AppliesTo = swarmpb.AssignmentsMessage_INCREMENTAL, strconv.Itoa(sequence)
	}
	return m
}

// Tasks implements the Dispatcher service's old form of Assignments, which no
// Docker since 17.05 uses.
func (d *Dispatcher) Tasks(*swarmpb.TasksRequest, swarmpb.Dispatcher_TasksServer) error {
	return api.Errorf(api.Unimplemented, "this node is too old: it asks for Tasks, not Assignments")
}

const maxSpecs = 4096

// specCache keeps the messages of specs, which tasks share by pointer. Safe for
// concurrent use; bounded by starting over.
type specCache struct {
	mu    sync.Mutex
	specs map[*api.TaskSpec]*swarmpb.TaskSpec
}

func (c *specCache) get(s *api.TaskSpec) *swarmpb.TaskSpec {
	if s == nil {
		return nil
	}
	c.mu.Lock()
	m := c.specs[s]
	c.mu.Unlock()
	if m != nil {
		return m
	}
	m = swarmpb.NewTaskSpec(s)
	c.mu.Lock()
	if c.specs == nil || len(c.specs) >= maxSpecs {
		c.specs = map[*api.TaskSpec]*swarmpb.TaskSpec{}
	}
	c.specs[s] = m
	c.mu.Unlock()
	return m
}
