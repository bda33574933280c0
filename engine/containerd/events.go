package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	eventstypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// oomTopic is containerd's topic of TaskOOM events.
const oomTopic = "/tasks/oom"

// Run receives what shims report, until ctx ends. Only what the kernel kills
// for memory is learnt in this way; exits are waited for in calls to the shim,
// which lose nothing when the daemon is away.
func (r *Runtime) Run(ctx context.Context) error {
	path := r.shims.events
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("containerd: events of shims: %w", err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()))
	if err != nil {
		return errors.Join(err, l.Close())
	}
	eventsapi.RegisterTTRPCEventsService(server, r)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ctx, l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("containerd: events of shims: %w", err)
	}
	return nil
}

// Forward takes an event from a shim; it is called by the ttrpc server.
func (r *Runtime) Forward(_ context.Context, q *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	if e := q.GetEnvelope(); e.GetTopic() == oomTopic {
		var oom eventstypes.TaskOOM
		if err := proto.Unmarshal(e.GetEvent().GetValue(), &oom); err != nil {
			return nil, err
		}
		r.ooms.put(oom.ContainerID)
	}
	return &emptypb.Empty{}, nil
}
