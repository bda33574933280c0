package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

// shared is how many agents use one connection.
const shared = 200

// agents are all nodes, spread over the managers.
type agents struct {
	size  size
	log   *slog.Logger
	conns []*grpc.ClientConn
	work  sync.WaitGroup

	ready   atomic.Int64 // agents that have a session and their first assignments
	given   atomic.Int64 // tasks that arrived
	running atomic.Int64 // tasks whose RUNNING is committed
	lost    atomic.Int64 // sessions that broke
}

func newAgents(f *fleet, s size, log *slog.Logger) (*agents, error) {
	a := &agents{size: s, log: log}
	for i := range (s.Nodes + shared - 1) / shared {
		conn, err := rpc.DialManager(f.managers[i%len(f.managers)].Addr, f.creds)
		if err != nil {
			a.close()
			return nil, err
		}
		a.conns = append(a.conns, conn)
	}
	return a, nil
}

func (a *agents) close() {
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.work.Wait()
}

// run connects all agents; they go on until ctx ends.
func (a *agents) run(ctx context.Context) {
	for i := range a.size.Nodes {
		g := &agent{agents: a, id: nodeID(i), client: swarmpb.NewDispatcherClient(a.conns[i/shared])}
		a.work.Go(func() {
			for ctx.Err() == nil {
				if err := g.session(metadata.AppendToOutgoingContext(ctx, nodeKey, g.id)); err != nil && ctx.Err() == nil {
					a.lost.Add(1)
					a.log.Warn("an agent's session broke", "node", g.id, "err", err)
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
					}
				}
			}
		})
	}
}

// agent is a node that has nothing but its tasks.
type agent struct {
	*agents
	id     string
	client swarmpb.DispatcherClient
	known  map[string]bool
}

// session is one session, until it breaks.
func (g *agent) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &swarm.NodeDescription{Hostname: g.id, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}}
	d.Resources.NanoCPUs, d.Resources.MemoryBytes = 64e9, 256<<30
	s, err := g.client.Session(ctx, &swarmpb.SessionRequest{Description: swarmpb.NewNodeDescription(d)})
	if err != nil {
		return err
	}
	first, err := s.Recv()
	if err != nil {
		return err
	}
	id := first.GetSessionId()
	tasks, err := g.client.Assignments(ctx, &swarmpb.AssignmentsRequest{SessionId: id})
	if err != nil {
		return err
	}
	failed := make(chan error, 3)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	work.Go(func() {
		for {
			if _, err := s.Recv(); err != nil {
				failed <- err
				return
			}
		}
	})
	work.Go(func() { failed <- g.beat(ctx, id) })
	work.Go(func() { failed <- g.follow(ctx, id, tasks) })
	return <-failed
}

func (g *agent) beat(ctx context.Context, id string) error {
	for {
		r, err := g.client.Heartbeat(ctx, &swarmpb.HeartbeatRequest{SessionId: id})
		if err != nil {
			return err
		}
		select {
		case <-time.After(r.GetPeriod().AsDuration()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow takes assignments and reports that they run.
func (g *agent) follow(ctx context.Context, id string, stream grpc.ServerStreamingClient[swarmpb.AssignmentsMessage]) error {
	g.known = map[string]bool{}
	for began := false; ; began = true {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if !began {
			g.ready.Add(1)
		}
		var fresh []string
		for _, c := range m.GetChanges() {
			t := c.GetAssignment().GetTask()
			if t == nil || c.GetAction() == swarmpb.AssignmentChange_REMOVE || g.known[t.GetId()] {
				continue
			}
			if t.GetStatus().GetState() < swarmpb.NewTaskState(swarm.TaskStateRunning) {
				fresh = append(fresh, t.GetId())
			}
			g.known[t.GetId()] = true
		}
		g.given.Add(int64(len(fresh)))
		if err := g.start(ctx, id, fresh); err != nil {
			return err
		}
	}
}

// start reports what becomes of new tasks.
func (g *agent) start(ctx context.Context, session string, tasks []string) error {
	if len(tasks) == 0 {
		return nil
	}
	states := []swarm.TaskState{swarm.TaskStateRunning}
	if g.size.Steps {
		states = []swarm.TaskState{swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning}
	}
	for _, state := range states {
		req := &swarmpb.UpdateTaskStatusRequest{SessionId: session}
		for _, id := range tasks {
			st := &swarm.TaskStatus{State: state, Timestamp: time.Now(), Message: "started"}
			st.ContainerStatus = &swarm.ContainerStatus{ContainerID: fmt.Sprintf("%064s", id), PID: 4711}
			u := &swarmpb.UpdateTaskStatusRequest_TaskStatusUpdate{TaskId: id, Status: swarmpb.NewTaskStatus(st)}
			u.Status.Timestamp = timestamppb.Now()
			req.Updates = append(req.Updates, u)
		}
		for { // a manager without a leader says so, and the report is made again
			_, err := g.client.UpdateTaskStatus(ctx, req)
			if err == nil {
				break
			}
			if c := api.ClassOf(err); c != api.Unavailable && c != api.DeadlineExceeded {
				return err
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	g.running.Add(int64(len(tasks)))
	return nil
}
