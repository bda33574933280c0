package containerd

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/legion-swarm/legion/api"
)

// classify gives a containerd error its api.Class and says what was tried. An
// error that has a class already keeps it.
func classify(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	class := classOf(err)
	if class == api.Internal {
		class = classOf(errgrpc.ToNative(err))
	}
	return api.Errorf(class, format+": %w", append(args, err)...)
}

func classOf(err error) api.Class {
	switch {
	case errdefs.IsNotFound(err):
		return api.NotFound
	case errdefs.IsAlreadyExists(err):
		return api.Exists
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return api.Invalid
	case errdefs.IsFailedPrecondition(err), errdefs.IsConflict(err):
		return api.Conflict
	case errdefs.IsPermissionDenied(err):
		return api.PermissionDenied
	case errdefs.IsUnauthorized(err):
		return api.Unauthenticated
	case errdefs.IsNotImplemented(err):
		return api.Unimplemented
	case errdefs.IsResourceExhausted(err):
		return api.ResourceExhausted
	case errdefs.IsUnavailable(err):
		return api.Unavailable
	case errdefs.IsDeadlineExceeded(err), errors.Is(err, context.DeadlineExceeded):
		return api.DeadlineExceeded
	}
	return api.Internal
}
