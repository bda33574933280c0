package dockerapi

import "net/http"

func (s *Server) taskRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Task", op, spec, h) }
	return []route{
		r("TaskList", "GET /tasks", s.taskList),
		r("TaskInspect", "GET /tasks/{name}", s.taskInspect),
		streaming(r("TaskLogs", "GET /tasks/{name}/logs", s.taskLogs)),
	}
}

func (s *Server) taskList(c *call) error {
	f, err := c.filters("_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
	if err != nil {
		return err
	}
	all, err := s.Cluster.TaskList(c.ctx, f)
	if err != nil {
		return err
	}
	e := taskEncoder{version: c.version}
	return c.list(len(all), func(b *buffer, i int) error { return e.encode(b, &all[i]) })
}

func (s *Server) taskInspect(c *call) error {
	in, err := s.Cluster.TaskInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	t := *in
	t.Spec = taskSpecFor(c.version, shownTaskSpec(t.Spec))
	return c.json(http.StatusOK, &t)
}

func (s *Server) taskLogs(c *call) error {
	l, err := c.swarmLogs()
	if err != nil {
		return err
	}
	t, err := s.Cluster.TaskInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	cs := t.Spec.ContainerSpec
	l.begin(cs != nil && cs.TTY)
	_, err = s.Cluster.TaskLogs(c.ctx, t.ID, l.o, l.taskLog)
	return l.end(err)
}
