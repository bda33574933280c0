package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// danglingPrefix begins the name of an image that lost its last tag.
const danglingPrefix = "legion-dangling@"

// maxConfigSize bounds the manifests and configs that are read into memory.
const maxConfigSize = 8 << 20

// Images is engine.Images on containerd's content and image stores. An image's
// id is the digest of its manifest or index, and its name in the store the
// full reference ("docker.io/library/redis:8").
type Images struct {
	mu     sync.Mutex
	chains map[string]string // image id and platform to chain id of the layers
	pulls  map[string]*pull

	// names is held while names are added or removed after a look-up, so that no
	// name is given to an image that is being removed.
	names sync.Mutex

	in  func(context.Context) context.Context
	cfg Config
	st  *storage
	r   *Runtime
}

var _ engine.Images = (*Images)(nil)

func newImages(r *Runtime) *Images {
	return &Images{
		chains: make(map[string]string), pulls: make(map[string]*pull),
		in: r.in, cfg: r.cfg, st: r.st, r: r,
	}
}

// found is the outcome of a look-up: an image and the name it was found by.
type found struct {
	target ocispec.Descriptor
	name   string // full reference; empty when found by id
	all    []images.Image
}

func noSuchImage(name string) error { return api.Errorf(api.NotFound, "No such image: %s", name) }

// find looks an image up by any name that docker accepts.
func (i *Images) find(ctx context.Context, name string) (*found, error) {
	if name == "" || len(name) > 1024 {
		return nil, api.Errorf(api.Invalid, "invalid reference format: %.64q", name)
	}
	if f, err := i.findByRef(ctx, name); f != nil || err != nil {
		return f, err
	}
	return i.findByID(ctx, name)
}

// findByRef returns nil when the name is not one, or there is none of it.
func (i *Images) findByRef(ctx context.Context, name string) (*found, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		if strings.Contains(err.Error(), "must be lowercase") {
			return nil, api.Errorf(api.Invalid, "invalid reference format: %w", err)
		}
		return nil, nil // perhaps an id
	}
	ref = reference.TagNameOnly(ref)
	if d, ok := ref.(reference.Digested); ok {
		all, err := i.byDigest(ctx, d.Digest())
		if err != nil {
			return nil, err
		}
		for _, img := range all {
			if n, err := reference.ParseNormalizedNamed(img.Name); err == nil && n.Name() == ref.Name() {
				return &found{target: img.Target, name: img.Name, all: all}, nil
			}
		}
		return nil, nil
	}
	img, err := i.st.images.Get(ctx, ref.String())
	if err != nil {
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		return nil, classify(err, "containerd: image %s", name)
	}
	all, err := i.byDigest(ctx, img.Target.Digest)
	return &found{target: img.Target, name: img.Name, all: all}, err
}

func (i *Images) byDigest(ctx context.Context, d digest.Digest) ([]images.Image, error) {
	all, err := i.st.images.List(ctx, fmt.Sprintf("target.digest==%q", d))
	return all, classify(err, "containerd: images of %s", d)
}

func idPattern() *regexp.Regexp { return regexp.MustCompile(`^(sha256:)?([a-f0-9]{1,64})$`) }

// findByID looks up by id or an unambiguous prefix of one.
func (i *Images) findByID(ctx context.Context, name string) (*found, error) {
	m := idPattern().FindStringSubmatch(name)
	if m == nil {
		return nil, noSuchImage(name)
	}
	list, err := i.st.images.List(ctx)
	if err != nil {
		return nil, classify(err, "containerd: images")
	}
	var f *found
	for _, img := range list {
		if !strings.HasPrefix(img.Target.Digest.Encoded(), m[2]) {
			continue
		}
		if f == nil {
			f = &found{target: img.Target}
		} else if f.target.Digest != img.Target.Digest {
			return nil, api.Errorf(api.Invalid, "ambiguous image id: more than one begins with %s; give more of it", name)
		}
		f.all = append(f.all, img)
	}
	if f == nil {
		return nil, noSuchImage(name)
	}
	return f, nil
}

// variant is what one platform of an image consists of.
type variant struct {
	desc     ocispec.Descriptor // of the manifest
	manifest ocispec.Manifest
	config   ocispec.Image
	docker   dockerConfig
}

// dockerConfig is the part of a config that OCI's type leaves out.
type dockerConfig struct {
	Comment         string `json:"comment"`
	DockerVersion   string `json:"docker_version"`
	Parent          string `json:"parent"`
	ContainerConfig struct {
		Cmd []string
	} `json:"container_config"`
	Config engine.DockerImageConfig `json:"config"`
}

func (v *variant) platform() ocispec.Platform { return platforms.Normalize(v.config.Platform) }

// matcher selects a platform; nil: the host's.
func matcher(p *ocispec.Platform) platforms.MatchComparer {
	if p == nil {
		return platforms.Default()
	}
	return platforms.Only(*p)
}

// errPlatform says that the image has other platforms only.
var errPlatform = errors.New("platform not provided")

// variant reads the manifest and config for a platform (nil: the host's; an
// image with a single manifest is taken whatever its platform when nil).
func (i *Images) variant(ctx context.Context, target ocispec.Descriptor, p *ocispec.Platform) (*variant, error) {
	desc, err := i.selectManifest(ctx, target, p)
	if err != nil {
		return nil, err
	}
	return i.readVariant(ctx, desc)
}

func (i *Images) readVariant(ctx context.Context, desc ocispec.Descriptor) (*variant, error) {
	v := &variant{desc: desc}
	if err := i.readJSON(ctx, desc, &v.manifest); err != nil {
		return nil, err
	}
	if err := i.readJSON(ctx, v.manifest.Config, &v.config, &v.docker); err != nil {
		return nil, err
	}
	return v, nil
}

func (i *Images) selectManifest(ctx context.Context, target ocispec.Descriptor, p *ocispec.Platform) (ocispec.Descriptor, error) {
	if !images.IsIndexType(target.MediaType) {
		if p == nil {
			return target, nil
		}
		v, err := i.readVariant(ctx, target)
		if err != nil {
			return target, err
		}
		if v.config.OS != "" && !matcher(p).Match(v.platform()) {
			return target, api.Errorf(api.NotFound, "%w: the image is for %s, not %s", errPlatform, platforms.Format(v.platform()), platforms.Format(*p))
		}
		return target, nil
	}
	all, err := i.manifests(ctx, target)
	if err != nil {
		return target, err
	}
	want := matcher(p)
	all = slices.DeleteFunc(all, func(d ocispec.Descriptor) bool {
		return isAttestation(d) || d.Platform != nil && !want.Match(*d.Platform)
	})
	slices.SortStableFunc(all, func(a, b ocispec.Descriptor) int {
		if a.Platform == nil || b.Platform == nil {
			return 0
		}
		if want.Less(*a.Platform, *b.Platform) {
			return -1
		}
		return 1
	})
	var first error
	for _, d := range all {
		if _, err := i.readVariant(ctx, d); err == nil {
			return d, nil
		} else if first == nil {
			first = err
		}
	}
	if first != nil {
		return target, first
	}
	name := platforms.DefaultString()
	if p != nil {
		name = platforms.Format(*p)
	}
	return target, api.Errorf(api.NotFound, "%w: the image has nothing for %s", errPlatform, name)
}

// manifests lists the manifests of an index, nested ones too.
func (i *Images) manifests(ctx context.Context, target ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	const limit = 1024
	var out []ocispec.Descriptor
	queue := []ocispec.Descriptor{target}
	for n := 0; len(queue) > 0; n++ {
		if n > limit {
			return nil, api.Errorf(api.Invalid, "image index %s has more than %d entries", target.Digest, limit)
		}
		d := queue[0]
		queue = queue[1:]
		if !images.IsIndexType(d.MediaType) {
			if images.IsManifestType(d.MediaType) {
				out = append(out, d)
			}
			continue
		}
		var index ocispec.Index
		if err := i.readJSON(ctx, d, &index); err != nil {
			if d.Digest != target.Digest && api.Is(err, api.NotFound) {
				continue
			}
			return nil, err
		}
		queue = append(queue, index.Manifests...)
	}
	return out, nil
}

// isAttestation tells BuildKit's provenance manifests from images.
func isAttestation(d ocispec.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
}

// readJSON reads a blob into each of the values.
func (i *Images) readJSON(ctx context.Context, d ocispec.Descriptor, into ...any) error {
	if d.Size > maxConfigSize {
		return api.Errorf(api.Invalid, "%s %s is larger than %d bytes", d.MediaType, d.Digest, maxConfigSize)
	}
	b, err := content.ReadBlob(ctx, i.st.content, d)
	if err != nil {
		return classify(err, "containerd: content %s", d.Digest)
	}
	for _, v := range into {
		if err := json.Unmarshal(b, v); err != nil {
			return api.Errorf(api.Invalid, "content %s (%s) is malformed: %w", d.Digest, d.MediaType, err)
		}
	}
	return nil
}

// Resolve implements engine.Images.
func (i *Images) Resolve(ctx context.Context, name string) (*engine.Image, error) {
	ctx = i.in(ctx)
	f, err := i.find(ctx, name)
	if err != nil {
		return nil, err
	}
	v, err := i.variant(ctx, f.target, nil)
	if err != nil {
		return nil, err
	}
	shown := f.target.Digest.String()
	if f.name != "" {
		shown = familiar(f.name)
	}
	return &engine.Image{
		ID: f.target.Digest.String(), Name: shown, Config: v.config, Docker: v.docker.Config,
		Digest: f.target.Digest.String(), Platform: platforms.Format(v.platform()),
	}, nil
}

// familiar is a reference as users write it.
func familiar(name string) string {
	if strings.HasPrefix(name, danglingPrefix) {
		return strings.TrimPrefix(name, danglingPrefix)
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return reference.FamiliarString(ref)
}
