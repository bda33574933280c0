package dockerapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (s *Server) containerRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Container", op, spec, h) }
	return []route{
		r("ContainerList", "GET /containers/json", s.containerList),
		r("ContainerCreate", "POST /containers/create", s.containerCreate),
		r("ContainerPrune", "POST /containers/prune", s.containerPrune),
		r("ContainerInspect", "GET /containers/{name}/json", s.containerInspect),
		r("ContainerTop", "GET /containers/{name}/top", s.containerTop),
		r("ContainerChanges", "GET /containers/{name}/changes", s.containerChanges),
		r("ContainerStart", "POST /containers/{name}/start", s.containerStart),
		r("ContainerStop", "POST /containers/{name}/stop", s.containerStop),
		r("ContainerRestart", "POST /containers/{name}/restart", s.containerRestart),
		r("ContainerKill", "POST /containers/{name}/kill", s.containerKill),
		r("ContainerPause", "POST /containers/{name}/pause", s.containerPause),
		r("ContainerUnpause", "POST /containers/{name}/unpause", s.containerUnpause),
		r("ContainerUpdate", "POST /containers/{name}/update", s.containerUpdate),
		r("ContainerRename", "POST /containers/{name}/rename", s.containerRename),
		r("ContainerResize", "POST /containers/{name}/resize", s.containerResize),
		r("ContainerDelete", "DELETE /containers/{name}", s.containerRemove),
		r("ImageCommit", "POST /commit", s.commit),
	}
}

func (s *Server) containerList(c *call) error {
	known := []string{"ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network", "publish", "since", "status", "volume"}
	if c.version.from(56) {
		known = append(known, "annotation")
	}
	f, err := c.filters(known...)
	if err != nil {
		return err
	}
	limit, _, err := c.int("limit")
	if err != nil {
		return err
	}
	for _, state := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(state)); err != nil {
			return api.Errorf(api.Invalid, "%w", err)
		}
	}
	all, err := s.Containers.ContainerList(c.ctx, engine.ContainerListOptions{All: c.bool("all"), Size: c.bool("size"), Limit: limit, Filters: f})
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(summaryFor(c.version, &all[i])) })
}

// createRequest is container.CreateRequest with the container-wide MAC address
// that it had before 1.52.
type createRequest struct {
	*container.Config
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
	MacAddress       network.HardwareAddr
}

func (s *Server) containerCreate(c *call) error {
	var r createRequest
	if err := c.decode(&r); err != nil {
		return err
	}
	if r.Config == nil {
		return api.Errorf(api.Invalid, "config cannot be empty in order to create a container")
	}
	if r.HostConfig == nil {
		r.HostConfig = &container.HostConfig{}
	}
	if r.NetworkingConfig == nil {
		r.NetworkingConfig = &network.NetworkingConfig{}
	}
	if c.version.before(52) && len(r.MacAddress) > 0 {
		r.moveMAC()
	}
	if err := wantedFor(c.version, &r); err != nil {
		return err
	}
	p, err := c.platform()
	if err != nil {
		return err
	}
	resp, err := s.Containers.ContainerCreate(c.whole(), engine.CreateOptions{
		Name:       strings.TrimPrefix(c.query.Get("name"), "/"),
		Config:     r.Config,
		Host:       r.HostConfig,
		Networking: r.NetworkingConfig,
		Platform:   p,
	})
	if err != nil {
		return err
	}
	resp.Warnings = some(resp.Warnings)
	return c.json(http.StatusCreated, resp)
}

// moveMAC puts the container-wide MAC address on the first network's endpoint.
func (r *createRequest) moveMAC() {
	name := string(r.HostConfig.NetworkMode)
	if name == "" || name == network.NetworkDefault {
		name = network.NetworkBridge
	}
	if r.NetworkingConfig.EndpointsConfig == nil {
		r.NetworkingConfig.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	e := r.NetworkingConfig.EndpointsConfig[name]
	if e == nil {
		e = &network.EndpointSettings{}
		r.NetworkingConfig.EndpointsConfig[name] = e
	}
	if len(e.MacAddress) == 0 {
		e.MacAddress = r.MacAddress
	}
}

func (s *Server) containerPrune(c *call) error {
	f, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	r, err := s.Containers.ContainerPrune(c.ctx, f)
	if err != nil {
		return err
	}
	r.ContainersDeleted = some(r.ContainersDeleted)
	return c.json(http.StatusOK, r)
}

func (s *Server) containerInspect(c *call) error {
	r, err := s.Containers.ContainerInspect(c.ctx, c.name, c.bool("size"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, inspectFor(c.version, r))
}

func (s *Server) containerTop(c *call) error {
	r, err := s.Containers.ContainerTop(c.ctx, c.name, c.query.Get("ps_args"))
	return answer(c, http.StatusOK, r, err)
}

func (s *Server) containerChanges(c *call) error {
	all, err := s.Containers.ContainerChanges(c.ctx, c.name)
	return listOf(c, all, err)
}

func (s *Server) containerStart(c *call) error {
	// Docker took a HostConfig here once; a client that still sends one would be
	// surprised. Two bytes are "{}".
	if c.r.ContentLength > 2 || c.r.ContentLength < 0 {
		return api.Errorf(api.Invalid, "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if c.query.Get("checkpoint") != "" {
		return api.Errorf(api.Unimplemented, "starting a container from a checkpoint is not served")
	}
	return c.done(s.Containers.ContainerStart(c.whole(), c.name))
}

func (c *call) stopOptions() (engine.StopOptions, error) {
	var o engine.StopOptions
	if c.version.from(42) {
		o.Signal = c.query.Get("signal")
	}
	t, ok, err := c.int("t")
	if ok {
		o.Timeout = &t
	}
	return o, err
}

func (s *Server) containerStop(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return c.done(s.Containers.ContainerStop(c.whole(), c.name, o))
}

func (s *Server) containerRestart(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	return c.done(s.Containers.ContainerRestart(c.whole(), c.name, o))
}

func (s *Server) containerKill(c *call) error {
	return c.done(s.Containers.ContainerKill(c.ctx, c.name, c.query.Get("signal")))
}

func (s *Server) containerPause(c *call) error {
	return c.done(s.Containers.ContainerPause(c.ctx, c.name))
}

func (s *Server) containerUnpause(c *call) error {
	return c.done(s.Containers.ContainerUnpause(c.ctx, c.name))
}

func (s *Server) containerUpdate(c *call) error {
	var u container.UpdateConfig
	if err := c.decodeOptional(&u); err != nil {
		return err
	}
	r, err := s.Containers.ContainerUpdate(c.whole(), c.name, &u)
	if err != nil {
		return err
	}
	r.Warnings = some(r.Warnings)
	return c.json(http.StatusOK, r)
}

func (s *Server) containerRename(c *call) error {
	name := strings.TrimPrefix(c.query.Get("name"), "/")
	if name == "" {
		return api.Errorf(api.Invalid, "Neither old nor new names may be empty")
	}
	return c.done(s.Containers.ContainerRename(c.whole(), c.name, name))
}

// size reads the h and w of a terminal.
func (c *call) size() (width, height uint32, err error) {
	h, hok, err := c.int("h")
	if err != nil {
		return 0, 0, err
	}
	w, wok, err := c.int("w")
	if err != nil {
		return 0, 0, err
	}
	if !hok || !wok || h < 0 || w < 0 || h > 0xffff || w > 0xffff {
		return 0, 0, api.Errorf(api.Invalid, "a terminal's size needs h and w, each from 0 to 65535")
	}
	return uint32(w), uint32(h), nil
}

func (s *Server) containerResize(c *call) error {
	w, h, err := c.size()
	if err != nil {
		return err
	}
	if err := s.Containers.ContainerResize(c.ctx, c.name, w, h); err != nil {
		return err
	}
	return c.status(http.StatusOK)
}

func (s *Server) containerRemove(c *call) error {
	if c.bool("link") {
		return api.Errorf(api.Unimplemented, "links between containers are not served: connect containers to a network instead")
	}
	return c.done(s.Containers.ContainerRemove(c.whole(), c.name, engine.RemoveOptions{Force: c.bool("force"), Volumes: c.bool("v")}))
}

func (s *Server) commit(c *call) error {
	name := c.query.Get("container")
	if name == "" {
		return api.Errorf(api.Invalid, "the parameter container must name the container to commit")
	}
	var cfg *container.Config
	if err := c.decodeOptional(&cfg); err != nil {
		return err
	}
	ref, err := taggedName(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	id, err := s.Containers.ContainerCommit(c.whole(), name, engine.CommitOptions{
		Ref: ref, Comment: c.query.Get("comment"), Author: c.query.Get("author"),
		Pause: c.boolOr("pause", true), Changes: c.query["changes"], Config: cfg,
	})
	return answer(c, http.StatusCreated, container.CommitResponse{ID: id}, err)
}

// gone tells whether err only says that the client left.
func (c *call) gone(err error) bool {
	return errors.Is(err, c.ctx.Err()) && c.ctx.Err() != nil
}
