package rpc

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/swarmpb"
)

// codeOf returns the gRPC code of a class. This and classOf are the only places
// that know both.
func codeOf(c api.Class) codes.Code {
	switch c {
	case api.Invalid:
		return codes.InvalidArgument
	case api.NotFound:
		return codes.NotFound
	case api.Exists:
		return codes.AlreadyExists
	case api.Conflict, api.NotLeader:
		return codes.FailedPrecondition
	case api.OutOfSequence:
		return codes.Aborted
	case api.Unavailable:
		return codes.Unavailable
	case api.PermissionDenied:
		return codes.PermissionDenied
	case api.Unauthenticated:
		return codes.Unauthenticated
	case api.Unimplemented:
		return codes.Unimplemented
	case api.DeadlineExceeded:
		return codes.DeadlineExceeded
	case api.ResourceExhausted:
		return codes.ResourceExhausted
	case api.Internal:
	}
	return codes.Internal
}

// classOf returns the class of a code that came without the class itself: from
// gRPC or from another implementation.
func classOf(c codes.Code) api.Class {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange:
		return api.Invalid
	case codes.NotFound:
		return api.NotFound
	case codes.AlreadyExists:
		return api.Exists
	case codes.FailedPrecondition:
		return api.Conflict
	case codes.Aborted:
		return api.OutOfSequence
	case codes.Unavailable, codes.Canceled:
		return api.Unavailable
	case codes.PermissionDenied:
		return api.PermissionDenied
	case codes.Unauthenticated:
		return api.Unauthenticated
	case codes.Unimplemented:
		return api.Unimplemented
	case codes.DeadlineExceeded:
		return api.DeadlineExceeded
	case codes.ResourceExhausted:
		return api.ResourceExhausted
	}
	return api.Internal
}

// toStatus makes of a handler's error what goes over the wire.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	text := strings.ToValidUTF8(err.Error(), "\uFFFD")
	var classed *api.Error
	if !errors.As(err, &classed) {
		switch {
		case errors.Is(err, context.Canceled):
			return status.Error(codes.Canceled, text)
		case errors.Is(err, context.DeadlineExceeded):
			return status.Error(codes.DeadlineExceeded, text)
		}
	}
	class := api.ClassOf(err)
	st := status.New(codeOf(class), text)
	if detailed, err := st.WithDetails(&swarmpb.ErrorDetail{Class: uint32(class)}); err == nil {
		st = detailed
	}
	return st.Err()
}

// Error makes of what a call returned an error with a class of package api; nil
// of nil. io.EOF and the like, which no server sent, stay as they are.
func Error(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	class, answered := classOf(st.Code()), false
	for _, d := range st.Details() {
		if d, ok := d.(*swarmpb.ErrorDetail); ok && d.Class <= uint32(api.ResourceExhausted) {
			class, answered = api.Class(d.Class), true
		}
	}
	return api.Errorf(class, "%w", &remote{text: plain(st.Message()), cause: contextCause(st.Code()), answered: answered})
}

// refuse makes of a handler's error what goes in a receipt.
func refuse(number uint64, err error) *swarmpb.RaftRefusal {
	text := err.Error()
	return &swarmpb.RaftRefusal{Number: number, Class: uint32(api.ClassOf(err)), Text: strings.ToValidUTF8(text[:min(len(text), maxRefusal)], "\uFFFD")}
}

// refusalOf is the error that refuse was given, as Error has it.
func refusalOf(r *swarmpb.RaftRefusal) error {
	class := api.Internal
	if c := r.GetClass(); c <= uint32(api.ResourceExhausted) {
		class = api.Class(c)
	}
	return api.Errorf(class, "%w", &remote{text: r.GetText(), answered: true})
}

// maxRefusal bounds a refusal's text, which fits in a receipt.
const maxRefusal = maxReceipt / 4

// Answered reports whether a manager answered with this error; false when the
// call did not get that far.
func Answered(err error) bool {
	var r *remote
	return errors.As(err, &r) && r.answered
}

// remote is an error as another node told it.
type remote struct {
	text  string
	cause error // context.Canceled, context.DeadlineExceeded, or nil
	// answered is true when it came from the other node's handler.
	answered bool
}

func (r *remote) Error() string { return r.text }

func (r *remote) Unwrap() error { return r.cause }

// plain takes gRPC's own wrapping off the text of a connection that failed.
func plain(text string) string {
	inner, ok := strings.CutPrefix(text, "connection error: desc = ")
	if !ok {
		return text
	}
	if inner, err := strconv.Unquote(inner); err == nil {
		return "no connection: " + strings.TrimPrefix(strings.TrimPrefix(inner, "transport: "), "Error while dialing: ")
	}
	return text
}

func contextCause(c codes.Code) error {
	switch c {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	}
	return nil
}
