package containerd

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

func (i *Images) setNameLocked(ctx context.Context, name string, target ocispec.Descriptor) error {
	i.names.Lock()
	defer i.names.Unlock()
	return i.setName(ctx, name, target)
}

// setName makes name mean the target. An image that loses its last name by
// that stays, without a tag, as docker keeps it.
func (i *Images) setName(ctx context.Context, name string, target ocispec.Descriptor) error {
	old, err := i.st.images.Get(ctx, name)
	if err != nil && !errdefs.IsNotFound(err) {
		return classify(err, "containerd: image %s", name)
	}
	had := err == nil
	if had && old.Target.Digest != target.Digest {
		if err := i.keepDangling(ctx, old.Target, name); err != nil {
			return err
		}
	}
	img := images.Image{Name: name, Target: target}
	if had {
		_, err = i.st.images.Update(ctx, img)
	} else {
		_, err = i.st.images.Create(ctx, img)
	}
	if err != nil {
		return classify(err, "containerd: name image %s", name)
	}
	if strings.HasPrefix(name, danglingPrefix) {
		return nil
	}
	return i.dropDangling(ctx, target)
}

// keepDangling keeps an image without a tag, unless it has a name other than
// except.
func (i *Images) keepDangling(ctx context.Context, target ocispec.Descriptor, except string) error {
	all, err := i.byDigest(ctx, target.Digest)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(all, func(img images.Image) bool { return img.Name != except }) {
		return nil
	}
	_, err = i.st.images.Create(ctx, images.Image{Name: danglingPrefix + target.Digest.String(), Target: target})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return classify(err, "containerd: keep image %s", target.Digest)
	}
	return nil
}

// dropDangling forgets the nameless record of an image that has a name now.
func (i *Images) dropDangling(ctx context.Context, target ocispec.Descriptor) error {
	err := i.st.images.Delete(ctx, danglingPrefix+target.Digest.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return classify(err, "containerd: image %s", target.Digest)
	}
	return nil
}

// Tag implements engine.Images.
func (i *Images) Tag(ctx context.Context, name, ref string) error {
	ctx = i.in(ctx)
	i.names.Lock()
	defer i.names.Unlock()
	f, err := i.find(ctx, name)
	if err != nil {
		return err
	}
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return api.Errorf(api.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	if _, ok := n.(reference.Digested); ok {
		return api.Errorf(api.Invalid, "refusing to create a tag with a digest reference: %s", ref)
	}
	return i.setName(ctx, reference.TagNameOnly(n).String(), f.target)
}
