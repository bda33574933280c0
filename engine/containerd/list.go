package containerd

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// entry is an image with all of its names, as lists and filters see it.
type entry struct {
	target  ocispec.Descriptor
	names   []string // full references; none: dangling
	digests []string // familiar name@digest
	tags    []string // familiar name:tag
	v       *variant // nil when there is no content to read
	added   time.Time
}

// entries lists all images, newest first.
func (i *Images) entries(ctx context.Context) ([]*entry, error) {
	all, err := i.st.images.List(ctx)
	if err != nil {
		return nil, classify(err, "containerd: images")
	}
	byID := make(map[digest.Digest]*entry)
	for _, img := range all {
		e := byID[img.Target.Digest]
		if e == nil {
			e = &entry{target: img.Target, tags: []string{}, digests: []string{}}
			byID[img.Target.Digest] = e
		}
		e.add(img)
	}
	list := make([]*entry, 0, len(byID))
	for _, e := range byID {
		slices.Sort(e.tags)
		slices.Sort(e.digests)
		e.digests = slices.Compact(e.digests)
		if e.v, err = i.variant(ctx, e.target, nil); err != nil {
			e.v, _ = i.anyVariant(ctx, e.target)
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *entry) int {
		return cmp.Or(b.created().Compare(a.created()), cmp.Compare(a.target.Digest, b.target.Digest))
	})
	return list, nil
}

func (e *entry) add(img images.Image) {
	if img.UpdatedAt.After(e.added) {
		e.added = img.UpdatedAt
	}
	ref, err := reference.ParseNormalizedNamed(img.Name)
	if err != nil || strings.HasPrefix(img.Name, danglingPrefix) {
		return
	}
	e.names = append(e.names, img.Name)
	if t, ok := ref.(reference.Tagged); ok {
		e.tags = append(e.tags, reference.FamiliarName(ref)+":"+t.Tag())
	}
	e.digests = append(e.digests, reference.FamiliarName(ref)+"@"+e.target.Digest.String())
}

func (e *entry) created() time.Time {
	if e.v == nil || e.v.config.Created == nil {
		return time.Time{}
	}
	return *e.v.config.Created
}

func (e *entry) labels() map[string]string {
	if e.v == nil {
		return nil
	}
	return e.v.config.Config.Labels
}

// List implements engine.Images.
func (i *Images) List(ctx context.Context, o engine.ImageListOptions) ([]image.Summary, error) {
	ctx = i.in(ctx)
	list, err := i.entries(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := i.imageFilter(ctx, o.Filters, list)
	if err != nil {
		return nil, err
	}
	var shared map[digest.Digest]int
	if o.SharedSize {
		shared = layerUse(list)
	}
	out := []image.Summary{}
	for _, e := range list {
		if !keep(e) {
			continue
		}
		s, err := i.summary(ctx, e, o.Manifests)
		if err != nil {
			return nil, err
		}
		if o.SharedSize {
			s.SharedSize = i.sharedSize(ctx, e, shared)
		}
		out = append(out, s)
	}
	return out, nil
}

func (i *Images) summary(ctx context.Context, e *entry, withManifests bool) (image.Summary, error) {
	target := e.target
	s := image.Summary{
		ID: target.Digest.String(), Containers: -1, SharedSize: -1, Descriptor: &target,
		RepoTags: e.tags, RepoDigests: e.digests, Labels: e.labels(),
	}
	if t := e.created(); !t.IsZero() {
		s.Created = t.Unix()
	}
	manifests, err := i.manifestSummaries(ctx, target)
	if err != nil {
		return s, err
	}
	for _, m := range manifests {
		s.Size += m.Size.Total
	}
	if withManifests {
		s.Manifests = manifests
	}
	return s, nil
}

// manifestSummaries tells about each manifest of an image, and its sizes here.
func (i *Images) manifestSummaries(ctx context.Context, target ocispec.Descriptor) ([]image.ManifestSummary, error) {
	all, err := i.manifests(ctx, target)
	if err != nil {
		if api.Is(err, api.NotFound) {
			return nil, nil
		}
		return nil, err
	}
	out := make([]image.ManifestSummary, 0, len(all))
	for _, d := range all {
		m := image.ManifestSummary{ID: d.Digest.String(), Descriptor: d, Kind: image.ManifestKindImage}
		if isAttestation(d) {
			m.Kind = image.ManifestKindAttestation
			m.AttestationData = &image.AttestationProperties{For: digest.Digest(d.Annotations["vnd.docker.reference.digest"])}
		}
		v, err := i.readVariant(ctx, d)
		if err == nil {
			m.Available = i.hasLayers(ctx, v)
			m.Size.Content = i.contentSize(ctx, v)
		}
		m.Size.Total = m.Size.Content
		if m.Kind == image.ManifestKindImage {
			p := &image.ImageProperties{Containers: []string{}}
			if d.Platform != nil {
				p.Platform = *d.Platform
			}
			if err == nil {
				p.Platform = v.platform()
				p.Size.Unpacked = i.unpackedSize(ctx, v)
			}
			m.Size.Total += p.Size.Unpacked
			m.ImageData = p
		}
		out = append(out, m)
	}
	return out, nil
}

func (i *Images) contentSize(ctx context.Context, v *variant) int64 {
	n := v.desc.Size + v.manifest.Config.Size
	for _, l := range v.manifest.Layers {
		if info, err := i.st.content.Info(ctx, l.Digest); err == nil {
			n += info.Size
		}
	}
	return n
}

// unpackedSize is what the variant's snapshots take.
func (i *Images) unpackedSize(ctx context.Context, v *variant) int64 {
	var n int64
	for k := range v.config.RootFS.DiffIDs {
		n += i.snapshotSize(ctx, v, k)
	}
	return n
}

// snapshotSize is what the k-th layer takes unpacked; 0 when it is not.
func (i *Images) snapshotSize(ctx context.Context, v *variant, k int) int64 {
	u, err := i.st.snapshots.Usage(ctx, identity.ChainID(v.config.RootFS.DiffIDs[:k+1]).String())
	if err != nil {
		return 0
	}
	return u.Size
}

// layerUse counts in how many images each chain of layers is.
func layerUse(list []*entry) map[digest.Digest]int {
	use := make(map[digest.Digest]int)
	for _, e := range list {
		if e.v == nil {
			continue
		}
		for k := range e.v.config.RootFS.DiffIDs {
			use[identity.ChainID(e.v.config.RootFS.DiffIDs[:k+1])]++
		}
	}
	return use
}

func (i *Images) sharedSize(ctx context.Context, e *entry, use map[digest.Digest]int) int64 {
	var n int64
	if e.v == nil {
		return 0
	}
	for k := range e.v.config.RootFS.DiffIDs {
		if use[identity.ChainID(e.v.config.RootFS.DiffIDs[:k+1])] > 1 {
			n += i.snapshotSize(ctx, e.v, k)
		}
	}
	return n
}

// imageFilter makes a predicate of docker's image filters.
func (i *Images) imageFilter(ctx context.Context, f api.Filters, list []*entry) (func(*entry) bool, error) {
	var tests []func(*entry) bool
	for key, values := range f {
		var any []func(*entry) bool
		for _, v := range values {
			t, err := i.imageTest(ctx, key, v, list)
			if err != nil {
				return nil, err
			}
			if key == "label" || key == "label!" {
				tests = append(tests, t)
				continue
			}
			any = append(any, t)
		}
		if len(any) > 0 {
			tests = append(tests, func(e *entry) bool {
				return slices.ContainsFunc(any, func(t func(*entry) bool) bool { return t(e) })
			})
		}
	}
	return func(e *entry) bool {
		return !slices.ContainsFunc(tests, func(t func(*entry) bool) bool { return !t(e) })
	}, nil
}

func (i *Images) imageTest(ctx context.Context, key, value string, list []*entry) (func(*entry) bool, error) {
	switch key {
	case "dangling":
		want, err := parseBool(value)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "invalid filter 'dangling=[%s]'", value)
		}
		return func(e *entry) bool { return (len(e.names) == 0) == want }, nil
	case "label", "label!":
		k, v, exact := strings.Cut(value, "=")
		return func(e *entry) bool {
			got, ok := e.labels()[k]
			return (ok && (!exact || got == v)) == (key == "label")
		}, nil
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, api.Errorf(api.Invalid, "invalid filter 'reference=%s': %w", value, err)
		}
		return func(e *entry) bool { return matchesReference(value, e) }, nil
	case "until":
		at, err := parseTime(value)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "invalid filter 'until=%s': %w", value, err)
		}
		return func(e *entry) bool { return e.created().Before(at) }, nil
	case "before", "since":
		f, err := i.find(ctx, value)
		if err != nil {
			return nil, err
		}
		n := slices.IndexFunc(list, func(e *entry) bool { return e.target.Digest == f.target.Digest })
		if n < 0 {
			return nil, noSuchImage(value)
		}
		at := list[n].created()
		if key == "before" {
			return func(e *entry) bool { return e.created().Before(at) }, nil
		}
		return func(e *entry) bool { return e.created().After(at) }, nil
	}
	return nil, api.Errorf(api.Invalid, "invalid filter '%s'", key)
}

func matchesReference(pattern string, e *entry) bool {
	return slices.ContainsFunc(e.names, func(name string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return false
		}
		for _, s := range []reference.Reference{ref, reference.TrimNamed(ref)} {
			if ok, err := reference.FamiliarMatch(pattern, s); err == nil && ok {
				return true
			}
		}
		return false
	})
}

// Usage implements engine.Images.
func (i *Images) Usage(ctx context.Context) (int64, error) {
	ctx = i.in(ctx)
	var n int64
	err := i.st.content.Walk(ctx, func(info content.Info) error {
		n += info.Size
		return nil
	})
	if err != nil {
		return 0, classify(err, "containerd: size of content")
	}
	err = i.st.snapshots.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			u, err := i.st.snapshots.Usage(ctx, info.Name)
			if err != nil {
				return nil // removed meanwhile
			}
			n += u.Size
		}
		return nil
	})
	return n, classify(err, "containerd: size of snapshots")
}
