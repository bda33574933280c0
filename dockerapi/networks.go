package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

func (s *Server) networkRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Network", op, spec, h) }
	return []route{
		r("NetworkList", "GET /networks", s.networkList),
		r("NetworkList", "GET /networks/", s.networkList),
		r("NetworkCreate", "POST /networks/create", s.networkCreate),
		r("NetworkPrune", "POST /networks/prune", s.networkPrune),
		r("NetworkInspect", "GET /networks/{name}", s.networkInspect),
		r("NetworkDelete", "DELETE /networks/{name}", s.networkRemove),
		r("NetworkConnect", "POST /networks/{name}/connect", s.networkConnect),
		r("NetworkDisconnect", "POST /networks/{name}/disconnect", s.networkDisconnect),
	}
}

func (s *Server) networkList(c *call) error {
	f, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	all, err := s.Networks.NetworkList(c.ctx, f)
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error {
		n := all[i]
		n.Network = wholeNetwork(n.Network)
		if c.version.from(52) {
			return b.encodeOne(&n)
		}
		old := legacyNetwork{n, map[string]network.EndpointResource{}}
		if c.version.before(28) {
			var err error
			if old.Containers, err = s.networkMembers(c.ctx, n.ID); err != nil {
				return err
			}
		}
		return b.encodeOne(old)
	})
}

// legacyNetwork is a network in lists before 1.52; from 1.28 on never with
// containers.
type legacyNetwork struct {
	network.Summary
	Containers map[string]network.EndpointResource
}

// wholeNetwork has no null where the API has an object.
func wholeNetwork(n network.Network) network.Network {
	n.Options, n.Labels = someMap(n.Options), someMap(n.Labels)
	n.IPAM.Config = some(n.IPAM.Config)
	return n
}

func (s *Server) networkCreate(c *call) error {
	var q networkRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	r, err := q.request()
	if err != nil {
		return err
	}
	if r.Name == "" {
		return api.Errorf(api.Invalid, "invalid network: Name is empty")
	}
	resp, err := s.Networks.NetworkCreate(c.ctx, r)
	return answer(c, http.StatusCreated, resp, err)
}

func (s *Server) networkPrune(c *call) error {
	f, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	r, err := s.Networks.NetworkPrune(c.ctx, f)
	if err != nil {
		return err
	}
	r.NetworksDeleted = some(r.NetworksDeleted)
	return c.json(http.StatusOK, r)
}

func (s *Server) networkInspect(c *call) error {
	verbose, err := c.strictBool("verbose")
	if err != nil {
		return err
	}
	in, err := s.Networks.NetworkInspect(c.ctx, c.name, c.query.Get("scope"), verbose)
	if err != nil {
		return err
	}
	n := *in
	n.Network = wholeNetwork(n.Network)
	n.Containers = someMap(n.Containers)
	if c.version.before(52) {
		n.Status = nil
	}
	return c.json(http.StatusOK, &n)
}

func (s *Server) networkRemove(c *call) error {
	return c.done(s.Networks.NetworkRemove(c.ctx, c.name))
}

func (s *Server) networkConnect(c *call) error {
	var r network.ConnectRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Container == "" {
		return api.Errorf(api.Invalid, "invalid request: Container is empty")
	}
	if err := s.Networks.NetworkConnect(c.ctx, c.name, &r); err != nil {
		return err
	}
	return c.status(http.StatusOK)
}

func (s *Server) networkDisconnect(c *call) error {
	var r network.DisconnectRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Container == "" {
		return api.Errorf(api.Invalid, "invalid request: Container is empty")
	}
	if err := s.Networks.NetworkDisconnect(c.ctx, c.name, &r); err != nil {
		return err
	}
	return c.status(http.StatusOK)
}
