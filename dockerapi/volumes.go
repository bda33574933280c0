package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"

	"github.com/legion-swarm/legion/api"
)

func (s *Server) volumeRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Volume", op, spec, h) }
	return []route{
		r("VolumeList", "GET /volumes", s.volumeList),
		r("VolumeCreate", "POST /volumes/create", s.volumeCreate),
		r("VolumePrune", "POST /volumes/prune", s.volumePrune),
		r("VolumeInspect", "GET /volumes/{name}", s.volumeInspect),
		r("VolumeDelete", "DELETE /volumes/{name}", s.volumeRemove),
	}
}

func (s *Server) volumeList(c *call) error {
	f, err := c.filters("dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	r, err := s.Volumes.VolumeList(c.ctx, f)
	if err != nil {
		return err
	}
	r.Volumes, r.Warnings = some(r.Volumes), some(r.Warnings)
	return c.json(http.StatusOK, r)
}

func (s *Server) volumeCreate(c *call) error {
	var r volume.CreateRequest
	if err := c.decodeOptional(&r); err != nil {
		return err
	}
	if r.ClusterVolumeSpec != nil {
		return api.Errorf(api.Unimplemented, "cluster volumes are not served: leave out ClusterVolumeSpec for a volume of this node")
	}
	v, err := s.Volumes.VolumeCreate(c.ctx, &r)
	return answer(c, http.StatusCreated, v, err)
}

func (s *Server) volumePrune(c *call) error {
	f, err := c.filters("all", "label", "label!")
	if err != nil {
		return err
	}
	r, err := s.Volumes.VolumePrune(c.ctx, allVolumes(c.version, f))
	if err != nil {
		return err
	}
	r.VolumesDeleted = some(r.VolumesDeleted)
	return c.json(http.StatusOK, r)
}

func (s *Server) volumeInspect(c *call) error {
	v, err := s.Volumes.VolumeInspect(c.ctx, c.name)
	return answer(c, http.StatusOK, v, err)
}

func (s *Server) volumeRemove(c *call) error {
	return c.done(s.Volumes.VolumeRemove(c.ctx, c.name, c.bool("force")))
}
