package containerd

import (
	"context"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Remove implements engine.Images.
func (i *Images) Remove(ctx context.Context, name string, o engine.ImageRemoveOptions, inUse func(string) (string, bool)) ([]image.DeleteResponse, error) {
	if len(o.Platforms) > 0 {
		return nil, api.Errorf(api.Unimplemented, "removing single platforms of an image is not possible; remove the image and pull the platform that you want")
	}
	ctx = i.in(ctx)
	i.names.Lock()
	out, deleted, err := i.removeNames(ctx, name, o.Force, inUse)
	i.names.Unlock()
	if err != nil || !deleted {
		return out, err
	}
	return out, i.collect(ctx)
}

func (i *Images) removeNames(ctx context.Context, name string, force bool, inUse func(string) (string, bool)) (out []image.DeleteResponse, deleted bool, err error) {
	f, err := i.find(ctx, name)
	if err != nil {
		return nil, false, err
	}
	id := f.target.Digest.String()
	user, running := "", false
	if inUse != nil {
		user, running = inUse(id)
	}
	if f.name != "" && len(f.all) > 1 {
		return i.untag(ctx, nil, f.name, false)
	}
	short := id[7:19]
	if f.name == "" {
		if n := repositories(f.all); n > 1 && !force {
			return nil, false, api.Errorf(api.Conflict, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", short)
		}
		if user != "" && running {
			return nil, false, api.Errorf(api.Conflict, "conflict: unable to delete %s (cannot be forced) - image is being used by running container %s", short, shorten(user))
		}
		if user != "" && !force {
			return nil, false, api.Errorf(api.Conflict, "conflict: unable to delete %s (must be forced) - image is being used by stopped container %s", short, shorten(user))
		}
	} else if user != "" && !force {
		return nil, false, api.Errorf(api.Conflict, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", name, shorten(user), short)
	} else if user != "" && running {
		// The container goes on with an image that has lost its name.
		if err := i.keepDangling(ctx, f.target, f.name); err != nil {
			return nil, false, err
		}
		return i.untag(ctx, nil, f.name, false)
	}
	for _, img := range f.all {
		if out, _, err = i.untag(ctx, out, img.Name, true); err != nil {
			return out, false, err
		}
	}
	i.forgetChains(id)
	return append(out, image.DeleteResponse{Deleted: id}), true, nil
}

func shorten(id string) string { return id[:min(12, len(id))] }

// repositories counts the repositories that name an image.
func repositories(all []images.Image) int {
	var names []string
	for _, img := range all {
		if ref, err := reference.ParseNormalizedNamed(img.Name); err == nil && !strings.HasPrefix(img.Name, danglingPrefix) {
			names = append(names, ref.Name())
		}
	}
	slices.Sort(names)
	return len(slices.Compact(names))
}

func (i *Images) untag(ctx context.Context, out []image.DeleteResponse, name string, last bool) ([]image.DeleteResponse, bool, error) {
	if err := i.st.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
		return out, false, classify(err, "containerd: remove image %s", name)
	}
	if !strings.HasPrefix(name, danglingPrefix) {
		out = append(out, image.DeleteResponse{Untagged: familiar(name)})
	}
	return out, last, nil
}

// collect removes the content and layers that no image, container or transfer
// needs any more.
func (i *Images) collect(ctx context.Context) error {
	if err := i.r.layers.sweep(ctx); err != nil {
		return classify(err, "containerd: remove unused layers")
	}
	return classify(i.st.collect(ctx), "containerd: remove unused content")
}

// Prune implements engine.Images.
func (i *Images) Prune(ctx context.Context, f api.Filters, inUse func(string) bool) (*image.PruneReport, error) {
	ctx = i.in(ctx)
	dangling := true
	rest := make(api.Filters)
	for key, values := range f {
		switch key {
		case "dangling":
			for _, v := range values {
				b, err := parseBool(v)
				if err != nil {
					return nil, api.Errorf(api.Invalid, "invalid filter 'dangling=[%s]'", v)
				}
				dangling = b
			}
		case "until", "label", "label!":
			rest[key] = values
		default:
			return nil, api.Errorf(api.Invalid, "invalid filter '%s'", key)
		}
	}
	before, err := i.Usage(ctx)
	if err != nil {
		return nil, err
	}
	report := &image.PruneReport{ImagesDeleted: []image.DeleteResponse{}}
	if err := i.pruneNames(ctx, rest, dangling, inUse, report); err != nil {
		return nil, err
	}
	if err := i.collect(ctx); err != nil {
		return nil, err
	}
	after, err := i.Usage(ctx)
	if err != nil {
		return nil, err
	}
	report.SpaceReclaimed = uint64(max(0, before-after))
	return report, nil
}

func (i *Images) pruneNames(ctx context.Context, f api.Filters, dangling bool, inUse func(string) bool, report *image.PruneReport) error {
	i.names.Lock()
	defer i.names.Unlock()
	list, err := i.entries(ctx)
	if err != nil {
		return err
	}
	keep, err := i.imageFilter(ctx, f, list)
	if err != nil {
		return err
	}
	for _, e := range list {
		id := e.target.Digest.String()
		if !keep(e) || dangling && len(e.names) > 0 || inUse != nil && inUse(id) {
			continue
		}
		all, err := i.byDigest(ctx, e.target.Digest)
		if err != nil {
			return err
		}
		for _, img := range all {
			if report.ImagesDeleted, _, err = i.untag(ctx, report.ImagesDeleted, img.Name, true); err != nil {
				return err
			}
		}
		i.forgetChains(id)
		report.ImagesDeleted = append(report.ImagesDeleted, image.DeleteResponse{Deleted: id})
	}
	return nil
}
