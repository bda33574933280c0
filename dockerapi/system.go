package dockerapi

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// builderVersion says that there is no BuildKit behind this API.
const builderVersion = "1"

func (s *Server) systemRoutes() []route {
	return []route{
		newRoute("System", "SystemPing", "GET /_ping", s.ping),
		newRoute("System", "SystemPingHead", "HEAD /_ping", s.ping),
		newRoute("System", "SystemInfo", "GET /info", s.info),
		newRoute("System", "SystemVersion", "GET /version", s.version),
		newRoute("System", "SystemAuth", "POST /auth", s.login),
		newRoute("System", "SystemDataUsage", "GET /system/df", s.diskUsage),
		streaming(newRoute("System", "SystemEvents", "GET /events", s.events)),
	}
}

func (s *Server) ping(c *call) error {
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", builderVersion)
	h.Set("Swarm", s.System.SwarmState())
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return c.status(http.StatusOK)
	}
	_, err := c.w.Write([]byte("OK"))
	return err
}

func (s *Server) info(c *call) error {
	i, err := s.System.Info(c.ctx)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, infoFor(c.version, i))
}

func (s *Server) version(c *call) error {
	v, err := s.System.Version(c.ctx)
	if err != nil {
		return err
	}
	out := *v
	out.APIVersion, out.MinAPIVersion = MaxAPIVersion, MinAPIVersion
	out.Components = slices.Clone(v.Components)
	for i := range out.Components {
		if e := &out.Components[i]; e.Name == "Engine" { // where the command line reads them
			e.Details = maps.Clone(e.Details)
			e.Details["ApiVersion"], e.Details["MinAPIVersion"] = MaxAPIVersion, MinAPIVersion
		}
	}
	return c.json(http.StatusOK, &out)
}

func (s *Server) login(c *call) error {
	var a registry.AuthConfig
	if err := c.decode(&a); err != nil {
		return err
	}
	r, err := s.System.Auth(c.ctx, &a)
	return answer(c, http.StatusOK, r, err)
}

func (s *Server) diskUsage(c *call) error {
	var kinds []system.DiskUsageObject
	for _, t := range c.query["type"] {
		switch k := system.DiskUsageObject(t); k {
		case system.ContainerObject, system.ImageObject, system.VolumeObject, system.BuildCacheObject:
			kinds = append(kinds, k)
		default:
			return api.Errorf(api.Invalid, "unknown object type: %s (known are container, image, volume, build-cache)", t)
		}
	}
	verbose := c.bool("verbose")
	legacy := c.version.before(52) || c.version.before(53) && !verbose
	u, err := s.System.DiskUsage(c.ctx, kinds, verbose || legacy)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, diskUsageFor(c.version, u, verbose, legacy))
}

func (s *Server) events(c *call) error {
	since, err := c.time("since")
	if err != nil {
		return err
	}
	if c.query.Get("since") == "0" { // all that is remembered, where no since means none of it
		since = time.Unix(0, 0)
	}
	until, err := c.time("until")
	if err != nil {
		return err
	}
	if !until.IsZero() && since.After(until) {
		return api.Errorf(api.Invalid, "`since` time (%d) cannot be after `until` time (%d)", since.Unix(), until.Unix())
	}
	f, err := c.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	contentType := eventsType(c.r.Header.Values("Accept"))
	c.w.Header().Set("Content-Type", contentType)
	c.flush()

	b := s.getBuffer()
	defer s.putBuffer(b)
	err = s.System.Events(c.ctx, engine.EventsOptions{Since: since, Until: until, Filters: f}, func(m events.Message) error {
		b.Reset()
		if contentType == types.MediaTypeJSONSequence {
			b.WriteByte(0x1e) // RFC 7464: record separator
		}
		if err := b.encode(eventFor(c.version, &m)); err != nil {
			return err
		}
		if _, err := c.w.Write(b.Bytes()); err != nil {
			return err
		}
		c.flush()
		return nil
	})
	if c.ctx.Err() != nil {
		return nil
	}
	return err
}

// eventsType picks the stream's format: the client's first wish that is known.
func eventsType(accept []string) string {
	for _, header := range accept {
		for wish := range strings.SplitSeq(header, ",") {
			media, _, _ := strings.Cut(wish, ";")
			switch media = strings.TrimSpace(media); media {
			case types.MediaTypeJSONLines, types.MediaTypeNDJSON, types.MediaTypeJSONSequence, types.MediaTypeJSON:
				return media
			}
		}
	}
	return types.MediaTypeJSON
}
