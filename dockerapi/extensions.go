package dockerapi

import (
	"net/http"
	"strconv"

	"github.com/legion-swarm/legion/api"
)

// extensionRoutes are what Legion offers beyond Docker's API: design/api.md.
func (s *Server) extensionRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Service", op, spec, h) }
	return []route{
		r("LegionServiceHistory", "GET /services/{name}/history", s.serviceHistory),
		r("LegionServiceRollback", "POST /services/{name}/rollback", s.serviceRollback),
		r("LegionServicePromote", "POST /services/{name}/promote", s.servicePromote),
		r("LegionServicePlan", "POST /services/{name}/plan", s.servicePlan),
	}
}

func (s *Server) serviceHistory(c *call) error {
	all, err := s.Cluster.ServiceHistory(c.ctx, c.name)
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(&all[i]) })
}

func (s *Server) serviceRollback(c *call) error {
	to, err := strconv.ParseUint(c.query.Get("to"), 10, 64)
	if err != nil || to == 0 {
		return api.Errorf(api.Invalid, "invalid value for to: %q is not the number of a version: see the service's history", c.query.Get("to"))
	}
	return c.ok(s.Cluster.ServiceRollback(c.ctx, c.name, to))
}

func (s *Server) servicePromote(c *call) error {
	return c.ok(s.Cluster.ServicePromote(c.ctx, c.name))
}

func (s *Server) servicePlan(c *call) error {
	spec, err := c.serviceSpec()
	if err != nil {
		return err
	}
	p, err := s.Cluster.ServicePlan(c.ctx, c.name, spec)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, p)
}
