package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) secretRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Secret", op, spec, h) }
	return []route{
		r("SecretList", "GET /secrets", s.secretList),
		r("SecretCreate", "POST /secrets/create", s.secretCreate),
		r("SecretInspect", "GET /secrets/{name}", s.secretInspect),
		r("SecretDelete", "DELETE /secrets/{name}", s.secretRemove),
		r("SecretUpdate", "POST /secrets/{name}/update", s.secretUpdate),
	}
}

// sealed is the secret without its data, whatever the backend gave: secrets
// can be written through the API, never read.
func sealed(in swarm.Secret) *swarm.Secret {
	in.Spec.Data, in.Spec.Labels = nil, someMap(in.Spec.Labels)
	return &in
}

func (s *Server) secretList(c *call) error {
	f, err := c.filters("id", "label", "name", "names")
	if err != nil {
		return err
	}
	all, err := s.Cluster.SecretList(c.ctx, f)
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(sealed(all[i])) })
}

func (s *Server) secretCreate(c *call) error {
	var spec swarm.SecretSpec
	if err := c.decode(&spec); err != nil {
		return err
	}
	id, err := s.Cluster.SecretCreate(c.ctx, &spec)
	return answer(c, http.StatusCreated, swarm.SecretCreateResponse{ID: id}, err)
}

func (s *Server) secretInspect(c *call) error {
	r, err := s.Cluster.SecretInspect(c.ctx, c.name)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, sealed(*r))
}

func (s *Server) secretRemove(c *call) error {
	return c.done(s.Cluster.SecretRemove(c.ctx, c.name))
}

func (s *Server) secretUpdate(c *call) error {
	var spec swarm.SecretSpec
	if err := c.decode(&spec); err != nil {
		return err
	}
	v, err := c.objectVersion("secret")
	if err != nil {
		return err
	}
	return c.ok(s.Cluster.SecretUpdate(c.ctx, c.name, v, &spec))
}
