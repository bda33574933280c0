package dockerapi

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (s *Server) imageRoutes() []route {
	r := func(op, spec string, h handler) route { return newRoute("Image", op, spec, h) }
	return []route{
		r("ImageList", "GET /images/json", s.imageList),
		streaming(r("ImageCreate", "POST /images/create", s.imageCreate)),
		streaming(r("ImageLoad", "POST /images/load", s.imageLoad)),
		r("ImagePrune", "POST /images/prune", s.imagePrune),
		r("ImageGetAll", "GET /images/get", s.imageSave),
		r("ImageGet", "GET /images/{name...}/get", s.imageSave),
		r("ImageInspect", "GET /images/{name...}/json", s.imageInspect),
		r("ImageHistory", "GET /images/{name...}/history", s.imageHistory),
		streaming(r("ImagePush", "POST /images/{name...}/push", s.imagePush)),
		r("ImageTag", "POST /images/{name...}/tag", s.imageTag),
		r("ImageDelete", "DELETE /images/{name...}", s.imageRemove),
		newRoute("Distribution", "DistributionInspect", "GET /distribution/{name...}/json", s.distribution),
	}
}

// taggedName puts a repository and a tag, both from the query, together.
func taggedName(repo, tag string) (string, error) {
	if repo == "" {
		return "", nil
	}
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", api.Errorf(api.Invalid, "invalid image name %q: %w", repo, err)
	}
	if _, digested := named.(reference.Digested); digested {
		return "", api.Errorf(api.Invalid, "refusing to create a tag with a digest reference: %q", repo)
	}
	if tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return "", api.Errorf(api.Invalid, "invalid tag %q: %w", tag, err)
		}
	}
	return reference.FamiliarString(reference.TagNameOnly(named)), nil
}

func (s *Server) imageList(c *call) error {
	f, err := c.filters("before", "dangling", "label", "reference", "since", "until")
	if err != nil {
		return err
	}
	if name := c.query.Get("filter"); name != "" && c.version.before(41) {
		if f == nil {
			f = api.Filters{}
		}
		f["reference"] = append(f["reference"], name)
	}
	all, err := s.Images.ImageList(c.ctx, engine.ImageListOptions{
		All: c.bool("all"), Filters: f, SharedSize: c.version.from(42) && c.bool("shared-size"), Manifests: c.version.from(47) && c.bool("manifests"),
	})
	if err != nil {
		return err
	}
	return c.list(len(all), func(b *buffer, i int) error { return b.encodeOne(imageSummaryFor(c.version, &all[i])) })
}

// imageCreate pulls, or imports a root file system.
func (s *Server) imageCreate(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	if c.query.Get("fromImage") != "" {
		return s.pull(c, p)
	}
	switch src := c.query.Get("fromSrc"); src {
	case "-":
	case "":
		return api.Errorf(api.Invalid, "either fromImage (to pull) or fromSrc (to import) is needed")
	default:
		return api.Errorf(api.Unimplemented, "importing from a URL is not served: download %s and import the file", src)
	}
	ref, err := taggedName(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	return c.progress(func(tell engine.Progress) error {
		id, err := s.Images.ImageImport(c.ctx, c.r.Body, ref, engine.ImportOptions{Message: c.query.Get("message"), Changes: c.query["changes"], Platform: p})
		if err == nil {
			tell(jsonstream.Message{Status: id})
		}
		return err
	})
}

func (s *Server) pull(c *call, p *ocispec.Platform) error {
	auth, err := c.auth()
	if err != nil {
		return err
	}
	ref, allTags, err := pullReference(c.query.Get("fromImage"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	return c.progress(func(tell engine.Progress) error {
		return s.Images.ImagePull(c.ctx, ref, engine.PullOptions{Platform: p, Auth: auth, AllTags: allTags}, tell)
	})
}

// pullReference: a digest in the name wins over tag, tag over a tag in the
// name; tag may be a digest; with neither, all tags are meant.
func pullReference(image, tag string) (ref string, allTags bool, err error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", false, api.Errorf(api.Invalid, "invalid reference format: %q: %w", image, err)
	}
	if _, digested := named.(reference.Digested); digested {
		return reference.FamiliarString(named), false, nil
	}
	if tag != "" {
		base := reference.FamiliarName(named)
		separator := ":"
		if strings.Contains(tag, ":") {
			separator = "@"
		}
		if named, err = reference.ParseNormalizedNamed(base + separator + tag); err != nil {
			return "", false, api.Errorf(api.Invalid, "invalid tag %q: %w", tag, err)
		}
	}
	return reference.FamiliarString(named), reference.IsNameOnly(named), nil
}

func (s *Server) imageLoad(c *call) error {
	p, err := c.platforms("platform")
	if err != nil {
		return err
	}
	quiet := c.boolOr("quiet", true)
	return c.progress(func(tell engine.Progress) error {
		if quiet { // only what was loaded, not how far it has come
			all := tell
			tell = func(m jsonstream.Message) {
				if m.Progress == nil {
					all(m)
				}
			}
		}
		return s.Images.ImageLoad(c.ctx, c.r.Body, p, tell)
	})
}

func (s *Server) imagePrune(c *call) error {
	f, err := c.filters("dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	r, err := s.Images.ImagePrune(c.ctx, f)
	if err != nil {
		return err
	}
	r.ImagesDeleted = some(r.ImagesDeleted)
	return c.json(http.StatusOK, r)
}

func (s *Server) imageSave(c *call) error {
	names := c.query["names"]
	if c.name != "" {
		names = []string{c.name}
	}
	if len(names) == 0 {
		return api.Errorf(api.Invalid, "the parameter names must say which images to save")
	}
	p, err := c.platforms("platform")
	if err != nil {
		return err
	}
	return c.cut(s.Images.ImageSave(c.ctx, names, p, lazyWriter{c, "application/x-tar"}))
}

func (s *Server) imageInspect(c *call) error {
	o := engine.ImageInspectOptions{Manifests: c.version.from(48) && c.bool("manifests")}
	if c.version.from(49) {
		var err error
		if o.Platform, err = c.platform(); err != nil {
			return err
		}
	}
	if o.Manifests && o.Platform != nil {
		return api.Errorf(api.Invalid, "conflicting options: manifests and platform options cannot both be set")
	}
	i, err := s.Images.ImageInspect(c.ctx, c.name, o)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, imageFor(c.version, i))
}

func (s *Server) imageHistory(c *call) error {
	p, err := c.platform()
	if err != nil {
		return err
	}
	all, err := s.Images.ImageHistory(c.ctx, c.name, p)
	return listOf(c, all, err)
}

func (s *Server) imagePush(c *call) error {
	auth, err := c.auth()
	if err != nil {
		return err
	}
	p, err := c.platform()
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(c.name)
	if err != nil {
		return api.Errorf(api.Invalid, "invalid reference format: %q: %w", c.name, err)
	}
	if tag := c.query.Get("tag"); tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return api.Errorf(api.Invalid, "invalid tag %q: %w", tag, err)
		}
	}
	o := engine.PullOptions{Platform: p, Auth: auth, AllTags: reference.IsNameOnly(named)}
	return c.progress(func(tell engine.Progress) error {
		return s.Images.ImagePush(c.ctx, reference.FamiliarString(named), o, tell)
	})
}

func (s *Server) imageTag(c *call) error {
	ref, err := taggedName(c.query.Get("repo"), c.query.Get("tag"))
	if err != nil {
		return err
	}
	if ref == "" {
		return api.Errorf(api.Invalid, "the parameter repo must say how to name the image")
	}
	if err := s.Images.ImageTag(c.ctx, c.name, ref); err != nil {
		return err
	}
	return c.status(http.StatusCreated)
}

func (s *Server) imageRemove(c *call) error {
	o := engine.ImageRemoveOptions{Force: c.bool("force"), PruneChildren: !c.bool("noprune")}
	if c.version.from(50) {
		all, err := c.removedPlatforms()
		if err != nil {
			return err
		}
		o.Platforms = all
	}
	all, err := s.Images.ImageRemove(c.ctx, c.name, o)
	return listOf(c, all, err)
}

// removedPlatforms reads platforms as a repeated JSON object, or as one list.
func (c *call) removedPlatforms() ([]ocispec.Platform, error) {
	one := c.query["platforms"]
	if len(one) == 1 && strings.HasPrefix(one[0], "[") {
		var all []ocispec.Platform
		if err := json.Unmarshal([]byte(one[0]), &all); err != nil {
			return nil, api.Errorf(api.Invalid, "invalid platforms %q: %w", one[0], err)
		}
		return all, nil
	}
	return c.platforms("platforms")
}

func (s *Server) distribution(c *call) error {
	auth, err := c.auth()
	if err != nil {
		return err
	}
	if _, err := reference.ParseAnyReference(c.name); err != nil {
		return api.Errorf(api.Invalid, "invalid reference format: %q: %w", c.name, err)
	}
	d, err := s.Images.DistributionInspect(c.ctx, c.name, auth)
	if err != nil {
		return err
	}
	d.Platforms = some(d.Platforms)
	return c.json(http.StatusOK, d)
}
