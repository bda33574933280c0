package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func (s *Server) swarmRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Swarm", op, spec, h) }
	return []route{
		r("SwarmInspect", "GET /swarm", s.swarmInspect),
		r("SwarmInit", "POST /swarm/init", s.swarmInit),
		r("SwarmJoin", "POST /swarm/join", s.swarmJoin),
		r("SwarmLeave", "POST /swarm/leave", s.swarmLeave),
		r("SwarmUpdate", "POST /swarm/update", s.swarmUpdate),
		r("SwarmUnlockkey", "GET /swarm/unlockkey", s.swarmUnlockKey),
		r("SwarmUnlock", "POST /swarm/unlock", s.swarmUnlock),
	}
}

func (s *Server) swarmInspect(c *call) error {
	r, err := s.Swarm.SwarmInspect(c.ctx)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, &swarm.Swarm{ClusterInfo: *shownCluster(&r.ClusterInfo), JoinTokens: r.JoinTokens})
}

func (s *Server) swarmInit(c *call) error {
	var r swarm.InitRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if c.version.before(39) {
		r.DefaultAddrPool, r.SubnetSize = nil, 0
	}
	if c.version.before(40) {
		r.DataPathPort = 0
	}
	id, err := s.Swarm.SwarmInit(c.whole(), &r)
	return answer(c, http.StatusOK, id, err)
}

func (s *Server) swarmJoin(c *call) error {
	var r swarm.JoinRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	return c.ok(s.Swarm.SwarmJoin(c.ctx, &r))
}

// ok answers 200 with no body, or passes the error on.
func (c *call) ok(err error) error {
	if err != nil {
		return err
	}
	return c.status(http.StatusOK)
}

func (s *Server) swarmLeave(c *call) error {
	return c.ok(s.Swarm.SwarmLeave(c.whole(), c.bool("force")))
}

func (s *Server) swarmUpdate(c *call) error {
	var spec swarm.Spec
	if err := c.decode(&spec); err != nil {
		return err
	}
	v, err := c.objectVersion("swarm")
	if err != nil {
		return err
	}
	var f SwarmUpdateFlags
	for key, flag := range map[string]*bool{
		"rotateWorkerToken": &f.RotateWorkerToken, "rotateManagerToken": &f.RotateManagerToken, "rotateManagerUnlockKey": &f.RotateManagerUnlockKey,
		"rotateNetworkKeys": &f.RotateNetworkKeys,
	} {
		if *flag, err = c.strictBool(key); err != nil {
			return err
		}
	}
	return c.ok(s.Swarm.SwarmUpdate(c.ctx, v, &spec, f))
}

func (s *Server) swarmUnlockKey(c *call) error {
	key, err := s.Swarm.SwarmUnlockKey(c.ctx)
	return answer(c, http.StatusOK, swarm.UnlockKeyResponse{UnlockKey: key}, err)
}

func (s *Server) swarmUnlock(c *call) error {
	var r swarm.UnlockRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	return c.ok(s.Swarm.SwarmUnlock(c.ctx, r.UnlockKey))
}
