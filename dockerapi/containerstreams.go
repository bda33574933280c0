package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

const pathStatHeader = "X-Docker-Container-Path-Stat"

func (s *Server) containerStreamRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Container", op, spec, h) }
	return []route{
		streaming(r("ContainerLogs", "GET /containers/{name}/logs", s.containerLogs)),
		streaming(r("ContainerStats", "GET /containers/{name}/stats", s.containerStats)),
		streaming(r("ContainerAttach", "POST /containers/{name}/attach", s.containerAttach)),
		streaming(r("ContainerWait", "POST /containers/{name}/wait", s.containerWait)),
		r("ContainerExport", "GET /containers/{name}/export", s.containerExport),
		r("ContainerArchiveInfo", "HEAD /containers/{name}/archive", s.archiveInfo),
		r("ContainerArchive", "GET /containers/{name}/archive", s.archiveGet),
		r("PutContainerArchive", "PUT /containers/{name}/archive", s.archivePut),
	}
}

func (s *Server) containerLogs(c *call) error {
	l, err := c.logs()
	if err != nil {
		return err
	}
	tty, err := s.Containers.ContainerTTY(c.ctx, c.name)
	if err != nil {
		return err
	}
	l.begin(tty)
	_, err = s.Containers.ContainerLogs(c.ctx, c.name, l.o, func(m engine.LogMessage) error { return l.write(m, nil) })
	return l.end(err)
}

func (s *Server) containerStats(c *call) error {
	stream := c.boolOr("stream", true)
	oneShot := c.bool("one-shot")
	if stream && oneShot {
		return api.Errorf(api.Invalid, "cannot have stream=true and one-shot=true")
	}
	if stream { // unknown containers before the headers
		if _, err := s.Containers.ContainerTTY(c.ctx, c.name); err != nil {
			return err
		}
		c.w.Header().Set("Content-Type", "application/json")
		c.flush()
	}
	b := s.getBuffer()
	defer s.putBuffer(b)
	err := s.Containers.ContainerStats(c.ctx, c.name, stream, oneShot, func(st *container.StatsResponse) error {
		out := *st
		if c.version.before(52) {
			out.OSType = ""
		}
		b.Reset()
		if err := b.encode(&out); err != nil {
			return err
		}
		c.w.Header().Set("Content-Type", "application/json")
		if _, err := c.w.Write(b.Bytes()); err != nil {
			return err
		}
		c.flush()
		return nil
	})
	if c.gone(err) {
		return nil
	}
	return err
}

func (s *Server) containerAttach(c *call) error {
	info, err := s.Containers.ContainerInspect(c.ctx, c.name, false)
	if err != nil {
		return err
	}
	if st := info.State; st != nil {
		switch {
		case st.Paused:
			return api.Errorf(api.Conflict, "container %s is paused, unpause the container before attach", c.name)
		case st.Restarting:
			return api.Errorf(api.Conflict, "container %s is restarting, wait until the container is running", c.name)
		}
	}
	tty := info.Config != nil && info.Config.Tty
	conn, err := c.hijack(tty)
	if err != nil {
		return err
	}
	defer conn.close()
	o := engine.AttachOptions{Stream: c.bool("stream"), Logs: c.bool("logs"), DetachKeys: c.query.Get("detachKeys")}
	conn.streams(&o, tty, c.bool("stdin"), c.bool("stdout"), c.bool("stderr"))
	err = s.Containers.ContainerAttach(conn.ctx, c.name, o)
	if err != nil && conn.ctx.Err() == nil {
		c.log.Debug("attachment ended", "container", c.name, "error", err)
	}
	return nil
}

// streams fills in the streams that are wanted.
func (s *hijacked) streams(o *engine.AttachOptions, tty, stdin, stdout, stderr bool) {
	if stdin {
		o.Stdin = s.stdin
	} else {
		s.ignoreInput()
	}
	if tty {
		if stdout {
			o.Stdout = s.conn
		}
		if stderr {
			o.Stderr = s.conn
		}
		return
	}
	m := newMux(s.conn)
	if stdout {
		o.Stdout = m.stream(frameStdout)
	}
	if stderr {
		o.Stderr = m.stream(frameStderr)
	}
}

func (s *Server) containerWait(c *call) error {
	condition := container.WaitCondition(c.query.Get("condition"))
	if c.version.before(30) {
		condition = ""
	}
	switch condition {
	case "":
		condition = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return api.Errorf(api.Invalid, "invalid condition: %q (known are not-running, next-exit, removed)", condition)
	}
	ch, err := s.Containers.ContainerWait(c.ctx, c.name, condition)
	if err != nil {
		return err
	}
	if c.version.from(30) { // docker run starts the container when it has these headers
		c.w.Header().Set("Content-Type", "application/json")
		c.flush()
	}
	select {
	case r, ok := <-ch:
		if !ok {
			return nil
		}
		return c.json(http.StatusOK, &r)
	case <-c.ctx.Done():
		return nil
	}
}

func (s *Server) containerExport(c *call) error {
	return c.cut(s.Containers.ContainerExport(c.ctx, c.name, lazyWriter{c, "application/octet-stream"}))
}

func (c *call) path() (string, error) {
	p := c.query.Get("path")
	if p == "" {
		return "", api.Errorf(api.Invalid, "bad parameter: path must say what to copy in the container")
	}
	return p, nil
}

func (c *call) setPathStat(st *container.PathStat) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	c.w.Header().Set(pathStatHeader, base64.StdEncoding.EncodeToString(b))
	return nil
}

func (s *Server) archiveInfo(c *call) error {
	p, err := c.path()
	if err != nil {
		return err
	}
	st, err := s.Containers.ContainerStatPath(c.ctx, c.name, p)
	if err != nil {
		return err
	}
	if err := c.setPathStat(st); err != nil {
		return err
	}
	return c.status(http.StatusOK)
}

func (s *Server) archiveGet(c *call) error {
	p, err := c.path()
	if err != nil {
		return err
	}
	var failed error
	err = s.Containers.ContainerArchive(c.ctx, c.name, p, lazyWriter{c, "application/x-tar"}, func(st *container.PathStat) {
		failed = c.setPathStat(st)
	})
	if err == nil {
		err = failed
	}
	return c.cut(err)
}

func (s *Server) archivePut(c *call) error {
	p, err := c.path()
	if err != nil {
		return err
	}
	err = s.Containers.ContainerExtract(c.ctx, c.name, p, c.r.Body, c.bool("noOverwriteDirNonDir"), c.bool("copyUIDGID"))
	if err != nil {
		return err
	}
	return c.status(http.StatusOK)
}
