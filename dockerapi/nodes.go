package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) nodeRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Node", op, spec, h) }
	return []route{
		r("NodeList", "GET /nodes", s.nodeList),
		r("NodeInspect", "GET /nodes/{name}", s.nodeInspect),
		r("NodeDelete", "DELETE /nodes/{name}", s.nodeRemove),
		r("NodeUpdate", "POST /nodes/{name}/update", s.nodeUpdate),
	}
}

func (s *Server) nodeList(c *call) error {
	f, err := c.filters("id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	all, err := s.Cluster.NodeList(c.ctx, f)
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(wholeNode(all[i])) })
}

// wholeNode has no null where the API has an object.
func wholeNode(in swarm.Node) *swarm.Node {
	in.Spec.Labels = someMap(in.Spec.Labels)
	return &in
}

func (s *Server) nodeInspect(c *call) error {
	n, err := s.Cluster.NodeInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, wholeNode(*n))
}

func (s *Server) nodeRemove(c *call) error {
	return c.ok(s.Cluster.NodeRemove(c.ctx, c.name, c.bool("force")))
}

func (s *Server) nodeUpdate(c *call) error {
	var spec swarm.NodeSpec
	if err := c.decode(&spec); err != nil {
		return err
	}
	v, err := c.objectVersion("node")
	if err != nil {
		return err
	}
	return c.ok(s.Cluster.NodeUpdate(c.ctx, c.name, v, &spec))
}
