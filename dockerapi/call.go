package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/legion-swarm/legion/api"
)

// call is one request on its way through a handler.
type call struct {
	s       *Server
	w       *response
	r       *http.Request
	ctx     context.Context // ends with the request
	version Version
	name    string // of the object in the path
	query   url.Values
	log     *slog.Logger
}

func (c *call) parseQuery() error {
	q, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return api.Errorf(api.Invalid, "the query of the request's URL can't be read: %w", err)
	}
	c.query = q
	return nil
}

// hasBody tells whether the client announced a body.
func (c *call) hasBody() bool {
	return c.r.Body != nil && c.r.Body != http.NoBody && c.r.ContentLength != 0
}

// decode reads the JSON body into v. A missing one is an error, so that a request
// by mistake makes no swarm.
func (c *call) decode(v any) error {
	if !c.hasBody() {
		return jsonError(io.EOF)
	}
	return c.decodeOptional(v)
}

// decodeOptional is decode for requests that the reference takes without a body,
// too, as for a volume without a name. Then it leaves v as it is.
func (c *call) decodeOptional(v any) error {
	if !c.hasBody() {
		return nil
	}
	ct := c.r.Header.Get("Content-Type")
	mt, _, err := mime.ParseMediaType(ct)
	if err != nil {
		return api.Errorf(api.Invalid, "malformed Content-Type header (%s): %w", ct, err)
	}
	if mt != "application/json" {
		return api.Errorf(api.Invalid, "unsupported Content-Type header (%s): must be 'application/json'", ct)
	}
	return c.decodeJSON(v)
}

// decodeJSON reads the body as one JSON value, whatever its content type.
func (c *call) decodeJSON(v any) error {
	control := http.NewResponseController(c.w)
	limited := control.SetReadDeadline(time.Now().Add(c.s.BodyTimeout)) == nil
	if err := c.readJSON(v); err != nil {
		// Nobody waits for the rest of a body that is refused.
		c.w.Header().Set("Connection", "close")
		return err
	}
	if limited { // later reads watch for the client's leaving
		_ = control.SetReadDeadline(time.Time{})
	}
	return nil
}

// dropBody reads the rest of a body whose length the client told; some send
// one, docker-modem for instance, where the reference has none. What is sent in
// chunks may have no end.
func (c *call) dropBody() error {
	if c.r.ContentLength <= 0 {
		return nil
	}
	control := http.NewResponseController(c.w)
	_ = control.SetReadDeadline(time.Now().Add(c.s.BodyTimeout)) // hijack takes it back
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(c.w, c.r.Body, c.s.MaxBody)); err != nil {
		c.w.Header().Set("Connection", "close")
		return jsonError(err)
	}
	return nil
}

func (c *call) readJSON(v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, c.s.MaxBody))
	if err := dec.Decode(v); err != nil {
		return jsonError(err)
	}
	switch _, err := dec.Token(); {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return api.Errorf(api.Invalid, "unexpected content after JSON")
	default:
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return api.Errorf(api.Invalid, "unexpected content after JSON: %w", err)
		}
		return jsonError(err)
	}
}

func jsonError(err error) error {
	var tooLarge *http.MaxBytesError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &tooLarge):
		return api.Errorf(api.Invalid, "the request's body is larger than %d bytes: %w", tooLarge.Limit, err)
	case errors.As(err, &wrong) && wrong.Field != "":
		return api.Errorf(api.Invalid, "invalid JSON: %s is a %s, but must be of type %s", wrong.Field, wrong.Value, wrong.Type)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return api.Errorf(api.Invalid, "the request's body did not arrive in time: %w", err)
	case errors.Is(err, io.EOF):
		return api.Errorf(api.Invalid, "invalid JSON: got EOF while reading request body")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return api.Errorf(api.Invalid, "invalid JSON: the request's body ends too early")
	}
	return api.Errorf(api.Invalid, "invalid JSON: %w", err)
}

// json answers with v.
func (c *call) json(status int, v any) error {
	b := c.s.getBuffer()
	defer c.s.putBuffer(b)
	if err := b.encode(v); err != nil {
		return api.Errorf(api.Internal, "encode the answer: %w", err)
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(b.Len()))
	c.w.WriteHeader(status)
	_, err := c.w.Write(b.Bytes())
	return err
}

// whole is the context of changes that must not stop half-way because the
// client went away.
func (c *call) whole() context.Context { return context.WithoutCancel(c.ctx) }

// status answers with no body.
func (c *call) status(status int) error {
	c.w.WriteHeader(status)
	return nil
}

// done answers 204, or passes the error on.
func (c *call) done(err error) error {
	if err != nil {
		return err
	}
	return c.status(http.StatusNoContent)
}

// flush sends what was written; the headers too, if nothing was.
func (c *call) flush() {
	if c.w.status == 0 {
		c.w.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(c.w).Flush() // not every test writer can
}
