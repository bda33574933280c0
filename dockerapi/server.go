package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Metrics is told of every request. Implementations are safe for concurrent use.
type Metrics interface {
	// RequestDone: route is empty for a path that has none. status is 101 or 200
	// for hijacked connections and 499 when the client went away first.
	RequestDone(route Route, status int, took time.Duration)
}

// Config is for New.
type Config struct {
	Containers Containers
	Images     Images
	Volumes    Volumes
	System     System
	Networks   Networks
	Swarm      Swarm
	Cluster    Cluster

	// Logger gets requests at debug level, panics and failed answers. Required.
	Logger *slog.Logger
	// Version is Legion's own, for the Server header. Required.
	Version string
	// Metrics may be nil.
	Metrics Metrics
	// Authorize is asked before a request's handler runs; its error is the
	// answer. Nil lets everybody in who can reach the socket.
	Authorize func(r *http.Request, route Route) error
	// Profile adds Go's profiles, at /debug/pprof/.
	Profile bool
	// MaxBody bounds JSON bodies, in bytes; 0: 4 MiB. Image archives and files
	// copied into containers are streamed and have no bound.
	MaxBody int64
	// BodyTimeout bounds how long a JSON body may take to arrive; 0: 1 minute.
	BodyTimeout time.Duration
	// Now is the clock for request times; nil: time.Now.
	Now func() time.Time
}

func (c Config) validate() (Config, error) {
	for name, missing := range map[string]bool{
		"Containers": c.Containers == nil, "Images": c.Images == nil, "Volumes": c.Volumes == nil,
		"System": c.System == nil, "Networks": c.Networks == nil, "Swarm": c.Swarm == nil,
		"Cluster": c.Cluster == nil, "Logger": c.Logger == nil, "Version": c.Version == "",
	} {
		if missing {
			return c, fmt.Errorf("dockerapi: Config.%s is missing", name)
		}
	}
	if c.MaxBody == 0 {
		c.MaxBody = 4 << 20
	}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// Server answers Docker Engine API requests. It is an http.Handler, safe for
// concurrent use; Serve runs it on listeners.
type Server struct {
	Config
	routes   router
	profiles http.Handler // nil: not served
	requests atomic.Uint64
	buffers  sync.Pool      // of *buffer
	hijacks  sync.WaitGroup // connections that HTTP no longer knows of

	// stopping is closed by stopStreams, which ends all streaming answers.
	stopping chan struct{}
	stopOnce sync.Once
}

var _ http.Handler = (*Server)(nil)

// New returns a server for the backends in cfg. It starts nothing.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	s := &Server{Config: cfg, stopping: make(chan struct{})}
	s.buffers.New = newBuffer
	s.routes = newRouter(s.allRoutes())
	if cfg.Profile {
		s.profiles = profiles()
	}
	return s, nil
}

func (s *Server) allRoutes() []route {
	var all []route
	for _, tag := range [][]route{
		s.systemRoutes(), s.containerRoutes(), s.containerStreamRoutes(), s.execRoutes(), s.imageRoutes(), s.volumeRoutes(),
		s.networkRoutes(), s.swarmRoutes(), s.nodeRoutes(), s.serviceRoutes(), s.extensionRoutes(), s.taskRoutes(),
		s.secretRoutes(), s.configRoutes(), absentRoutes(),
	} {
		all = append(all, tag...)
	}
	return all
}

// Routes lists what is served, in no particular order.
func (s *Server) Routes() []Route {
	var all []Route
	for _, rs := range s.routes {
		for _, r := range rs {
			all = append(all, r.Route)
		}
	}
	return all
}

// stopStreams ends answers that would otherwise go on for as long as the
// client listens.
func (s *Server) stopStreams() { s.stopOnce.Do(func() { close(s.stopping) }) }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := s.Now()
	id := strconv.FormatUint(s.requests.Add(1), 10)
	h := w.Header()
	h.Set("Server", "Legion/"+s.Version+" ("+runtime.GOOS+")")
	h.Set("Api-Version", MaxAPIVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", runtime.GOOS)
	h.Set("X-Request-Id", id)

	out := &response{ResponseWriter: w}
	log := s.Logger.With("request", id)
	var matched Route
	defer func() {
		took := s.Now().Sub(start)
		if v := recover(); v != nil {
			s.panicked(out, log, r, v)
		}
		if s.Metrics != nil {
			s.Metrics.RequestDone(matched, out.status, took)
		}
		log.Debug("api request", "method", r.Method, "path", r.URL.Path, "operation", matched.Operation, "status", out.status, "took", took)
	}()

	err := s.serve(out, r, log, &matched)
	if err == nil {
		return
	}
	if out.status != 0 {
		log.Debug("api answer cut short", "operation", matched.Operation, "error", err)
		return
	}
	switch status := writeError(out, err); {
	case status == http.StatusInternalServerError && api.ClassOf(err) == api.Internal, status == http.StatusGatewayTimeout:
		log.Warn("api request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	default:
		log.Debug("api request refused", "operation", matched.Operation, "error", err)
	}
}

func (s *Server) serve(out *response, r *http.Request, log *slog.Logger, matched *Route) error {
	if s.profiles != nil && strings.HasPrefix(r.URL.Path, "/debug/") {
		s.profiles.ServeHTTP(out, r)
		return nil
	}
	found, rest := splitVersion(r.URL.Path)
	version, err := requestVersion(found)
	if err != nil {
		return err
	}
	rt, name := s.routes.match(r.Method, rest)
	if rt == nil || version.before(rt.Since) {
		return errNotFound
	}
	*matched = rt.Route
	r.SetPathValue("name", name)
	if s.Authorize != nil {
		if err := s.Authorize(r, rt.Route); err != nil {
			return err
		}
	}
	c := &call{s: s, w: out, r: r, version: version, name: name, log: log, ctx: r.Context()}
	if err := c.parseQuery(); err != nil {
		return err
	}
	if rt.Streams {
		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		c.ctx = ctx
		go func() {
			select {
			case <-s.stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	return rt.handle(c)
}

// panicked answers 500 where that is still possible. http.ErrAbortHandler is
// passed on: net/http knows it.
func (s *Server) panicked(out *response, log *slog.Logger, r *http.Request, v any) {
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v)
	}
	log.Error("api handler panicked", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	if out.status == 0 {
		writeError(out, api.Errorf(api.Internal, "the daemon failed to answer %s %s; its log has the details under request %s", r.Method, r.URL.Path, out.Header().Get("X-Request-Id")))
	}
}

// response remembers the status, so that an error after the answer has begun
// is not written into it.
type response struct {
	http.ResponseWriter
	status int
}

func (w *response) WriteHeader(status int) {
	if w.status != 0 {
		return // streams send their headers early
	}
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
