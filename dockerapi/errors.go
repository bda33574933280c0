package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strings"

	"github.com/moby/moby/api/types/common"

	"github.com/legion-swarm/legion/api"
)

// errNotFound answers unknown paths and methods, as Docker does.
var errNotFound = api.Errorf(api.NotFound, "page not found")

// statusClientClosed is logged, never seen: the client has gone.
const statusClientClosed = 499

// statusOf is the one place where classes of error become HTTP statuses.
func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	var classed *api.Error
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return http.StatusRequestTimeout
	case !errors.As(err, &classed) && errors.Is(err, context.Canceled):
		return statusClientClosed
	case !errors.As(err, &classed) && errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout
	}
	switch api.ClassOf(err) {
	case api.Invalid:
		return http.StatusBadRequest
	case api.NotFound:
		return http.StatusNotFound
	case api.Exists, api.Conflict:
		return http.StatusConflict
	case api.Unavailable, api.NotLeader:
		return http.StatusServiceUnavailable
	case api.PermissionDenied:
		return http.StatusForbidden
	case api.Unauthenticated:
		return http.StatusUnauthorized
	case api.Unimplemented:
		return http.StatusNotImplemented
	case api.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case api.NotModified:
		return http.StatusNotModified
	case api.Internal, api.OutOfSequence, api.ResourceExhausted:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// writeError answers with {"message": …} and the error's status.
func writeError(w http.ResponseWriter, err error) int {
	status := statusOf(err)
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return status
	}
	body, _ := json.Marshal(common.ErrorResponse{Message: strings.ToValidUTF8(err.Error(), "\uFFFD")})
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Del("Content-Length")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may have gone
	return status
}
