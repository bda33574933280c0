package containerd

import (
	"context"
	"errors"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
	driver "github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Inspect implements engine.Images.
func (i *Images) Inspect(ctx context.Context, name string, o engine.ImageInspectOptions) (*image.InspectResponse, error) {
	ctx = i.in(ctx)
	f, err := i.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if o.Manifests && o.Platform != nil {
		return nil, api.Errorf(api.Invalid, "conflicting options: manifests and platform options cannot both be set")
	}
	v, err := i.variant(ctx, f.target, o.Platform)
	if errors.Is(err, errPlatform) && o.Platform == nil {
		v, err = i.anyVariant(ctx, f.target)
	}
	if err != nil {
		return nil, err
	}
	e := &entry{target: f.target, v: v, tags: []string{}, digests: []string{}}
	for _, img := range f.all {
		e.add(img)
	}
	target := f.target
	r := &image.InspectResponse{
		ID: target.Digest.String(), RepoTags: e.tags, RepoDigests: e.digests,
		Comment: v.docker.Comment, Author: v.config.Author, Architecture: v.config.Architecture, Variant: v.config.Variant,
		Os: v.config.OS, OsVersion: v.config.OSVersion, Descriptor: &target,
		Size:        i.contentSize(ctx, v) + i.unpackedSize(ctx, v),
		GraphDriver: &driver.DriverData{Name: i.st.name, Data: map[string]string{}},
		RootFS:      image.RootFS{Type: v.config.RootFS.Type},
		Metadata:    image.Metadata{LastTagTime: e.added},
	}
	if c := v.config.Created; c != nil {
		r.Created = c.Format(time.RFC3339Nano)
	}
	for _, d := range v.config.RootFS.DiffIDs {
		r.RootFS.Layers = append(r.RootFS.Layers, d.String())
	}
	var full dockerspec.DockerOCIImage
	if err := i.readJSON(ctx, v.manifest.Config, &full); err != nil {
		return nil, err
	}
	r.Config = &full.Config
	if o.Manifests {
		r.Manifests, err = i.manifestSummaries(ctx, f.target)
	}
	return r, err
}

// History implements engine.Images.
func (i *Images) History(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	ctx = i.in(ctx)
	f, err := i.find(ctx, name)
	if err != nil {
		return nil, err
	}
	v, err := i.variant(ctx, f.target, platform)
	if errors.Is(err, errPlatform) && platform == nil {
		v, err = i.anyVariant(ctx, f.target)
	}
	if err != nil {
		return nil, err
	}
	out := []image.HistoryResponseItem{}
	layer := 0
	for _, h := range v.config.History {
		item := image.HistoryResponseItem{ID: "<missing>", Comment: h.Comment, CreatedBy: h.CreatedBy, Tags: []string{}}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer && layer < len(v.config.RootFS.DiffIDs) {
			item.Size = i.snapshotSize(ctx, v, layer)
			layer++
		}
		out = append([]image.HistoryResponseItem{item}, out...)
	}
	// Layers that the history does not tell of.
	for ; layer < len(v.config.RootFS.DiffIDs); layer++ {
		out = append([]image.HistoryResponseItem{{ID: "<missing>", Tags: []string{}, Size: i.snapshotSize(ctx, v, layer)}}, out...)
	}
	if len(out) > 0 {
		out[0].ID = f.target.Digest.String()
		for _, img := range f.all {
			e := &entry{target: f.target}
			e.add(img)
			out[0].Tags = append(out[0].Tags, e.tags...)
		}
	}
	return out, nil
}
