package containerd

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// Save implements engine.Images: an OCI layout with docker's manifest.json.
func (i *Images) Save(ctx context.Context, names []string, want []ocispec.Platform, w io.Writer) error {
	if len(names) == 0 {
		return api.Errorf(api.Invalid, "save: no image is named")
	}
	ctx, done, err := i.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	opts := []archive.ExportOpt{archive.WithSkipMissing(i.st.content)}
	if len(want) > 0 {
		opts = append(opts, archive.WithPlatform(platforms.Any(want...)))
	} else {
		opts = append(opts, archive.WithPlatform(platforms.Default()), archive.WithAllPlatforms())
	}
	for _, name := range names {
		f, err := i.find(ctx, name)
		if err != nil {
			return err
		}
		for _, p := range want {
			if _, err := i.variant(ctx, f.target, &p); err != nil {
				return err
			}
		}
		if f.name == "" {
			opts = append(opts, archive.WithManifest(f.target))
		} else {
			opts = append(opts, archive.WithImages([]images.Image{{Name: f.name, Target: f.target}}))
		}
	}
	return classify(archive.Export(ctx, i.st.content, w, opts...), "save")
}
