package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) configRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Config", op, spec, h) }
	return []route{
		r("ConfigList", "GET /configs", s.configList),
		r("ConfigCreate", "POST /configs/create", s.configCreate),
		r("ConfigInspect", "GET /configs/{name}", s.configInspect),
		r("ConfigDelete", "DELETE /configs/{name}", s.configRemove),
		r("ConfigUpdate", "POST /configs/{name}/update", s.configUpdate),
	}
}

func (s *Server) configList(c *call) error {
	f, err := c.filters("id", "label", "name", "names")
	if err != nil {
		return err
	}
	all, err := s.Cluster.ConfigList(c.ctx, f)
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(wholeConfig(all[i])) })
}

// wholeConfig has no null where the API has an object.
func wholeConfig(in swarm.Config) *swarm.Config {
	in.Spec.Labels = someMap(in.Spec.Labels)
	return &in
}

func (s *Server) configCreate(c *call) error {
	var spec swarm.ConfigSpec
	if err := c.decode(&spec); err != nil {
		return err
	}
	id, err := s.Cluster.ConfigCreate(c.ctx, &spec)
	return answer(c, http.StatusCreated, swarm.ConfigCreateResponse{ID: id}, err)
}

func (s *Server) configInspect(c *call) error {
	r, err := s.Cluster.ConfigInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, wholeConfig(*r))
}

func (s *Server) configRemove(c *call) error {
	return c.done(s.Cluster.ConfigRemove(c.ctx, c.name))
}

func (s *Server) configUpdate(c *call) error {
	var spec swarm.ConfigSpec
	if err := c.decode(&spec); err != nil {
		return err
	}
	v, err := c.objectVersion("config")
	if err != nil {
		return err
	}
	return c.ok(s.Cluster.ConfigUpdate(c.ctx, c.name, v, &spec))
}
