package dockerapi

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func (s *Server) serviceRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Service", op, spec, h) }
	return []route{
		r("ServiceList", "GET /services", s.serviceList),
		r("ServiceCreate", "POST /services/create", s.serviceCreate),
		r("ServiceInspect", "GET /services/{name}", s.serviceInspect),
		r("ServiceDelete", "DELETE /services/{name}", s.serviceRemove),
		r("ServiceUpdate", "POST /services/{name}/update", s.serviceUpdate),
		streaming(r("ServiceLogs", "GET /services/{name}/logs", s.serviceLogs)),
	}
}

func (s *Server) serviceList(c *call) error {
	f, err := c.filters("id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	status, err := c.strictBool("status")
	if err != nil {
		return err
	}
	all, err := s.Cluster.ServiceList(c.ctx, f, status && c.version.from(41))
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(serviceFor(c.version, &all[i])) })
}

// serviceRequest is a spec with the networks where they once were.
type serviceRequest struct {
	swarm.ServiceSpec
	Networks []swarm.NetworkAttachmentConfig
}

func (c *call) serviceSpec() (*swarm.ServiceSpec, error) {
	var r serviceRequest
	if err := c.decode(&r); err != nil {
		return nil, err
	}
	if len(r.TaskTemplate.Networks) == 0 {
		r.TaskTemplate.Networks = r.Networks
	}
	wishedFor(c.version, &r.ServiceSpec)
	return &r.ServiceSpec, nil
}

// serviceOptions reads what goes with a spec. The login is passed on as it
// came, once it is known that it can be read.
func (c *call) serviceOptions() (ServiceOptions, error) {
	o := ServiceOptions{
		RegistryAuth:     c.encodedAuth(),
		RegistryAuthFrom: c.query.Get("registryAuthFrom"),
		Rollback:         c.query.Get("rollback"),
	}
	if _, err := c.auth(); err != nil {
		return o, err
	}
	switch swarm.RegistryAuthSource(o.RegistryAuthFrom) {
	case "":
		o.RegistryAuthFrom = string(swarm.RegistryAuthFromSpec)
	case swarm.RegistryAuthFromSpec, swarm.RegistryAuthFromPreviousSpec:
	default:
		return o, api.Errorf(api.Invalid, "unsupported registryAuthFrom: %q (known are spec, previous-spec)", o.RegistryAuthFrom)
	}
	switch o.Rollback {
	case "", "none":
		o.Rollback = ""
	case "previous":
	default:
		return o, api.Errorf(api.Invalid, "unrecognized rollback option %s (known are previous, none)", o.Rollback)
	}
	return o, nil
}

func (s *Server) serviceCreate(c *call) error {
	spec, err := c.serviceSpec()
	if err != nil {
		return err
	}
	o, err := c.serviceOptions()
	if err != nil {
		return err
	}
	warnings, err := s.pinImage(c, spec, &o)
	if err != nil {
		return err
	}
	r, err := s.Cluster.ServiceCreate(c.ctx, spec, o)
	if err != nil {
		return err
	}
	r.Warnings = some(append(r.Warnings, warnings...))
	return c.json(http.StatusCreated, r)
}

func (s *Server) serviceInspect(c *call) error {
	defaults, err := c.strictBool("insertDefaults")
	if err != nil {
		return err
	}
	svc, err := s.Cluster.ServiceInspect(c.ctx, c.name, defaults)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, serviceFor(c.version, svc))
}

func (s *Server) serviceRemove(c *call) error {
	return c.ok(s.Cluster.ServiceRemove(c.ctx, c.name))
}

func (s *Server) serviceUpdate(c *call) error {
	spec, err := c.serviceSpec()
	if err != nil {
		return err
	}
	v, err := c.objectVersion("service")
	if err != nil {
		return err
	}
	o, err := c.serviceOptions()
	if err != nil {
		return err
	}
	warnings, err := s.pinImage(c, spec, &o)
	if err != nil {
		return err
	}
	r, err := s.Cluster.ServiceUpdate(c.ctx, c.name, v, spec, o)
	if err != nil {
		return err
	}
	r.Warnings = some(append(r.Warnings, warnings...))
	return c.json(http.StatusOK, r)
}

func (s *Server) serviceLogs(c *call) error {
	l, err := c.swarmLogs()
	if err != nil {
		return err
	}
	svc, err := s.Cluster.ServiceInspect(c.ctx, c.name, false)
	if err != nil {
		return err
	}
	cs := svc.Spec.TaskTemplate.ContainerSpec
	l.begin(cs != nil && cs.TTY)
	_, err = s.Cluster.ServiceLogs(c.ctx, svc.ID, l.o, l.taskLog)
	return l.end(err)
}
