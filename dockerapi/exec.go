package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (s *Server) execRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Exec", op, spec, h) }
	return []route{
		r("ContainerExec", "POST /containers/{name}/exec", s.execCreate),
		streaming(r("ExecStart", "POST /exec/{name}/start", s.execStart)),
		r("ExecResize", "POST /exec/{name}/resize", s.execResize),
		r("ExecInspect", "GET /exec/{name}/json", s.execInspect),
	}
}

func (s *Server) execCreate(c *call) error {
	var r container.ExecCreateRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if len(r.Cmd) == 0 {
		return api.Errorf(api.Invalid, "no exec command specified: Cmd is empty")
	}
	if !r.Tty || c.version.before(42) {
		r.ConsoleSize = nil
	}
	if c.version.before(35) {
		r.WorkingDir = ""
	}
	if c.version.before(25) {
		r.Env = nil
	}
	id, err := s.Containers.ExecCreate(c.ctx, c.name, &r)
	return answer(c, http.StatusCreated, container.ExecCreateResponse{ID: id}, err)
}

func (s *Server) execStart(c *call) error {
	var r container.ExecStartRequest
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if !r.Tty || c.version.before(42) {
		r.ConsoleSize = nil
	}
	info, err := s.Containers.ExecInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	switch {
	case info.Running:
		return api.Errorf(api.Conflict, "exec %s is already running", c.name)
	case info.ExitCode != nil:
		return api.Errorf(api.Conflict, "exec %s has already run", c.name)
	}
	if r.Detach {
		if err := s.Containers.ExecStart(c.ctx, c.name, true, r.ConsoleSize, engine.AttachOptions{}); err != nil {
			return err
		}
		return c.status(http.StatusOK)
	}
	conn, err := c.hijack(r.Tty)
	if err != nil {
		return err
	}
	defer conn.close()
	o := engine.AttachOptions{Stream: true, DetachKeys: string(info.DetachKeys)}
	conn.streams(&o, r.Tty, info.OpenStdin, info.OpenStdout, info.OpenStderr)
	err = s.Containers.ExecStart(conn.ctx, c.name, false, r.ConsoleSize, o)
	if err != nil && conn.ctx.Err() == nil {
		c.log.Debug("exec ended", "exec", c.name, "error", err)
		if o.Stdout != nil { // where Docker puts it
			_, _ = o.Stdout.Write([]byte(err.Error() + "\r\n"))
		}
	}
	return nil
}

func (s *Server) execResize(c *call) error {
	w, h, err := c.size()
	if err != nil {
		return err
	}
	if err := s.Containers.ExecResize(c.ctx, c.name, w, h); err != nil {
		return err
	}
	return c.status(http.StatusOK)
}

func (s *Server) execInspect(c *call) error {
	r, err := s.Containers.ExecInspect(c.ctx, c.name)
	return answer(c, http.StatusOK, r, err)
}
