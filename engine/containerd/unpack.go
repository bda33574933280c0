package containerd

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// snapshotLabel on a config keeps the image's snapshots from being collected.
const snapshotLabel = "containerd.io/gc.ref.snapshot."

// chain returns the chain id of an image's layers for a platform ("": the
// host's), and unpacks them where that has not been done.
func (i *Images) chain(ctx context.Context, id, platform string) (string, error) {
	if id == "" {
		return "", nil
	}
	key := id + " " + platform
	i.mu.Lock()
	chain, ok := i.chains[key]
	i.mu.Unlock()
	if ok {
		return chain, nil
	}
	var p *ocispec.Platform
	if platform != "" {
		parsed, err := platforms.Parse(platform)
		if err != nil {
			return "", api.Errorf(api.Invalid, "platform %q: %w", platform, err)
		}
		p = &parsed
	}
	f, err := i.findByID(ctx, id)
	if err != nil {
		return "", err
	}
	v, err := i.variant(ctx, f.target, p)
	if err != nil {
		return "", err
	}
	if chain, err = i.unpack(ctx, v); err != nil {
		return "", err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.chains[key] = chain
	return chain, nil
}

// forgetChains drops what is remembered of an image that was removed.
func (i *Images) forgetChains(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for key := range i.chains {
		if strings.HasPrefix(key, id+" ") {
			delete(i.chains, key)
		}
	}
}

// unpack makes snapshots of a variant's layers and returns their chain id.
func (i *Images) unpack(ctx context.Context, v *variant) (string, error) {
	layers, err := layersOf(v)
	if err != nil {
		return "", err
	}
	chain := identity.ChainID(v.config.RootFS.DiffIDs).String()
	if len(layers) == 0 {
		return "", nil
	}
	if _, err := i.st.snapshots.Stat(ctx, chain); err == nil {
		return chain, i.holdSnapshot(ctx, v.manifest.Config.Digest, chain)
	}
	ctx, free, err := i.st.lease(ctx)
	if err != nil {
		return "", err
	}
	defer free()
	if _, err := rootfs.ApplyLayers(ctx, layers, i.st.snapshots, i.st.applier); err != nil {
		return "", unpackError(err, v)
	}
	return chain, i.holdSnapshot(ctx, v.manifest.Config.Digest, chain)
}

func unpackError(err error, v *variant) error {
	for _, words := range []string{"wrong diff id", "archive/tar", "gzip", "zstd", "magic number", "unexpected EOF", "mismatched image"} {
		if strings.Contains(err.Error(), words) {
			return api.Errorf(api.Invalid, "image %s: a layer is malformed: %w", v.desc.Digest, err)
		}
	}
	return classify(err, "containerd: unpack image %s", v.desc.Digest)
}

// layersOf pairs a manifest's layers with the digests that they have unpacked.
func layersOf(v *variant) ([]rootfs.Layer, error) {
	diffs := v.config.RootFS.DiffIDs
	var blobs []ocispec.Descriptor
	for _, l := range v.manifest.Layers {
		if images.IsLayerType(l.MediaType) {
			blobs = append(blobs, l)
		}
	}
	if len(blobs) != len(diffs) {
		return nil, api.Errorf(api.Invalid, "image %s is malformed: its manifest has %d layers, its config %d", v.desc.Digest, len(blobs), len(diffs))
	}
	layers := make([]rootfs.Layer, len(blobs))
	for n, l := range blobs {
		if err := diffs[n].Validate(); err != nil {
			return nil, api.Errorf(api.Invalid, "image %s is malformed: layer %d: %w", v.desc.Digest, n, err)
		}
		layers[n] = rootfs.Layer{Blob: l, Diff: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffs[n]}}
	}
	return layers, nil
}

func (i *Images) holdSnapshot(ctx context.Context, config digest.Digest, chain string) error {
	key := snapshotLabel + i.st.name
	info, err := i.st.content.Info(ctx, config)
	if err == nil && info.Labels[key] == chain {
		return nil
	}
	_, err = i.st.content.Update(ctx, content.Info{Digest: config, Labels: map[string]string{key: chain}}, "labels."+key)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("containerd: label content %s: %w", config, err)
	}
	return nil
}
