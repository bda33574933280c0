package api

import (
	"errors"
	"fmt"
)

// Class says what kind of failure an error is, independent of where it
// happened. It is mapped to an HTTP status in package dockerapi and to a gRPC
// code in package rpc, and nowhere else.
type Class uint8

// The classes of error. The HTTP status that each becomes is Docker's.
const (
	Internal          Class = iota // a fault of ours; 500
	Invalid                        // the request can never succeed as it is; 400
	NotFound                       // the object named does not exist; 404
	Exists                         // the name or id is taken; 409
	Conflict                       // the object's state forbids it now; 409
	OutOfSequence                  // written with a stale Version.Index; 500, as Docker answers
	Unavailable                    // no quorum, no leader, not a manager, locked; 503
	NotLeader                      // another manager must do it; 503, retried by forwarding
	PermissionDenied               // the caller may not; 403
	Unauthenticated                // the caller is not known; 401
	Unimplemented                  // not served here; 501
	DeadlineExceeded               // it took too long; 504
	ResourceExhausted              // a limit was reached: pool empty, body too large; 500
	NotModified                    // it is already so (start of what runs, stop of what is stopped); 304
)

// Error is an error with a class. Build one with Errorf.
type Error struct {
	class Class
	err   error
}

// Errorf returns an error of the given class. Its text is fmt.Errorf's, %w
// included, and should name the object and say what to do.
func Errorf(class Class, format string, args ...any) error {
	return &Error{class: class, err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the wrapped error, for errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.err }

// Class returns the error's class.
func (e *Error) Class() Class { return e.class }

// ClassOf returns the class of the outermost Error in err's chain, and
// Internal when there is none. ClassOf(nil) is Internal.
func ClassOf(err error) Class {
	var e *Error
	if errors.As(err, &e) {
		return e.class
	}
	return Internal
}

// Is reports whether err has the class, according to ClassOf. A nil error has
// no class.
func Is(err error, class Class) bool { return err != nil && ClassOf(err) == class }
