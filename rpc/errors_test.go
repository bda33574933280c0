package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/legion-swarm/legion/api"
)

// Every class comes through as it is, also those that gRPC has one code for.
func TestClassesTravel(t *testing.T) {
	for class := api.Internal; class <= api.ResourceExhausted; class++ {
		err := Error(toStatus(fmt.Errorf("context: %w", api.Errorf(class, "what %d", class))))
		if api.ClassOf(err) != class || err.Error() != fmt.Sprintf("context: what %d", class) {
			t.Errorf("class %d came back as %d: %v", class, api.ClassOf(err), err)
		}
	}
}

func TestForeignErrors(t *testing.T) {
	for code, class := range map[codes.Code]api.Class{
		codes.FailedPrecondition: api.Conflict, codes.Unavailable: api.Unavailable, codes.Unknown: api.Internal,
		codes.DataLoss: api.Internal, codes.ResourceExhausted: api.ResourceExhausted,
	} {
		if got := api.ClassOf(Error(status.Error(code, "x"))); got != class {
			t.Errorf("%v is class %d, want %d", code, got, class)
		}
	}
	if Error(nil) != nil || !errors.Is(Error(io.EOF), io.EOF) {
		t.Error("nil and EOF must stay as they are")
	}
	if err := Error(toStatus(context.Canceled)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled came back as %v", err)
	}
	if err := toStatus(errors.New("bad \xff text")); status.Code(err) != codes.Internal {
		t.Errorf("%v", err)
	}
}

// Whoever adds a service must say who may call it.
func TestAccess(t *testing.T) {
	var m access
	if m.check("x", Peer{}) == nil {
		t.Error("a method that is not in the table can be called")
	}
	for method, a := range methods() {
		if a == nobody {
			t.Errorf("%s: nobody may call it", method)
		}
	}
}

func TestPlainText(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 192.0.2.1:2377: connect: connection refused"`: "no connection: dial tcp 192.0.2.1:2377: connect: connection refused",
		`connection error: desc = "error reading server preface: EOF"`:                                                    "no connection: error reading server preface: EOF",
		`connection error: desc = cut "off`:                                                                               `connection error: desc = cut "off`,
		"no such node":                                                                                                    "no such node",
	} {
		if err := Error(status.Error(codes.Unavailable, text)); err.Error() != want {
			t.Errorf("%s: %q, want %q", text, err, want)
		}
	}
}
