package engine

import (
	"context"
	"io"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

func (e *Engine) imageEvent(action events.Action, id, name string) {
	a := map[string]string{}
	if name != "" {
		a["name"] = name
	}
	e.Emit(events.ImageEventType, action, id, a)
}

// ImagePull fetches an image by reference.
func (e *Engine) ImagePull(ctx context.Context, ref string, o PullOptions, p Progress) error {
	if err := e.cfg.Images.Pull(ctx, ref, o, p); err != nil {
		return err
	}
	e.imageEvent(events.ActionPull, ref, nameOnly(ref))
	return nil
}

func nameOnly(ref string) string {
	if n, err := reference.ParseNormalizedNamed(ref); err == nil {
		return reference.FamiliarName(n)
	}
	return ref
}

// ImagePush sends an image to its registry.
func (e *Engine) ImagePush(ctx context.Context, ref string, o PullOptions, p Progress) error {
	if err := e.cfg.Images.Push(ctx, ref, o, p); err != nil {
		return err
	}
	e.imageEvent(events.ActionPush, ref, nameOnly(ref))
	return nil
}

// ImageLoad takes images from an archive.
func (e *Engine) ImageLoad(ctx context.Context, r io.Reader, platforms []ocispec.Platform, p Progress) error {
	before, err := e.imageIDs(ctx)
	if err != nil {
		return err
	}
	if err := e.cfg.Images.Load(ctx, r, platforms, p); err != nil {
		return err
	}
	after, err := e.imageIDs(ctx)
	if err != nil {
		return err
	}
	for id, name := range after {
		if _, old := before[id]; !old {
			e.imageEvent(events.ActionLoad, id, name)
		}
	}
	return nil
}

// imageIDs maps images' ids to one of their names.
func (e *Engine) imageIDs(ctx context.Context) (map[string]string, error) {
	list, err := e.cfg.Images.List(ctx, ImageListOptions{All: true})
	if err != nil {
		return nil, err
	}
	ids := make(map[string]string, len(list))
	for i := range list {
		name := list[i].ID
		if len(list[i].RepoTags) > 0 {
			name = list[i].RepoTags[0]
		}
		ids[list[i].ID] = name
	}
	return ids, nil
}

// ImageSave writes images as an archive.
func (e *Engine) ImageSave(ctx context.Context, names []string, platforms []ocispec.Platform, w io.Writer) error {
	if err := e.cfg.Images.Save(ctx, names, platforms, w); err != nil {
		return err
	}
	for _, n := range names {
		e.imageEvent(events.ActionSave, n, n)
	}
	return nil
}

// ImageImport makes an image from a tar of a root file system.
func (e *Engine) ImageImport(ctx context.Context, r io.Reader, ref string, o ImportOptions) (string, error) {
	id, err := e.cfg.Images.Import(ctx, r, ref, o)
	if err == nil {
		e.imageEvent(events.ActionImport, id, id)
	}
	return id, err
}

// ImageTag gives an image one more name.
func (e *Engine) ImageTag(ctx context.Context, name, ref string) error {
	if err := e.cfg.Images.Tag(ctx, name, ref); err != nil {
		return err
	}
	id := name
	if img, err := e.cfg.Images.Resolve(ctx, ref); err == nil {
		id = img.ID
	}
	e.imageEvent(events.ActionTag, id, ref)
	return nil
}

// ImageList lists images.
func (e *Engine) ImageList(ctx context.Context, o ImageListOptions) ([]image.Summary, error) {
	return e.cfg.Images.List(ctx, o)
}

// ImageInspect describes an image.
func (e *Engine) ImageInspect(ctx context.Context, name string, o ImageInspectOptions) (*image.InspectResponse, error) {
	return e.cfg.Images.Inspect(ctx, name, o)
}

// ImageHistory lists an image's layers.
func (e *Engine) ImageHistory(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	return e.cfg.Images.History(ctx, name, platform)
}

// usedBy tells which container needs an image.
func (e *Engine) usedBy(id string) (container string, running bool) {
	for _, c := range e.all() {
		r := c.snapshot()
		if r.ImageID != id {
			continue
		}
		if r.Phase == phaseRunning || r.Restarting {
			return c.id, true
		}
		container = c.id
	}
	return container, false
}

// ImageRemove untags an image, and deletes it with its last tag.
func (e *Engine) ImageRemove(ctx context.Context, name string, o ImageRemoveOptions) ([]image.DeleteResponse, error) {
	list, err := e.cfg.Images.Remove(ctx, name, o, e.usedBy)
	if err != nil {
		return nil, err
	}
	e.removedImages(list)
	return list, nil
}

func (e *Engine) removedImages(list []image.DeleteResponse) {
	for _, d := range list {
		if d.Untagged != "" {
			e.imageEvent(events.ActionUnTag, d.Untagged, d.Untagged)
		}
		if d.Deleted != "" {
			e.imageEvent(events.ActionDelete, d.Deleted, d.Deleted)
		}
	}
}

// ImagePrune removes images that no container needs.
func (e *Engine) ImagePrune(ctx context.Context, f api.Filters) (*image.PruneReport, error) {
	r, err := e.cfg.Images.Prune(ctx, f, func(id string) bool {
		c, _ := e.usedBy(id)
		return c != ""
	})
	if err != nil {
		return nil, err
	}
	e.removedImages(r.ImagesDeleted)
	e.Emit(events.ImageEventType, events.ActionPrune, "", map[string]string{"reclaimed": utoa64(r.SpaceReclaimed)})
	return r, nil
}

// DistributionInspect asks the registry for an image's descriptor.
func (e *Engine) DistributionInspect(ctx context.Context, ref string, auth *registry.AuthConfig) (*registry.DistributionInspect, error) {
	return e.cfg.Images.Distribution(ctx, ref, auth)
}

// ContainerCommit makes an image from a container's root file system.
func (e *Engine) ContainerCommit(ctx context.Context, name string, o CommitOptions) (string, error) {
	c, err := e.find(name)
	if err != nil {
		return "", err
	}
	r := c.snapshot()
	if r.Phase == phaseRemoving || r.Phase == phaseDead {
		return "", api.Errorf(api.Conflict, "You cannot commit container %s which is Dead or being removed", c.id)
	}
	cfg := *r.Config
	if o.Config != nil {
		cfg = overlayConfig(cfg, o.Config)
	}
	o.Config = &cfg
	if o.Pause && r.Phase == phaseRunning && !r.Paused {
		if err := e.ContainerPause(ctx, c.id); err != nil {
			return "", err
		}
		defer func() {
			if err := e.ContainerUnpause(context.WithoutCancel(ctx), c.id); err != nil && !api.Is(err, api.Conflict) {
				e.cfg.Log.Error("a container could not be unpaused after a commit", "container", c.id, "error", err)
			}
		}()
	}
	id, err := e.cfg.Images.Commit(ctx, c.id, o)
	if err != nil {
		return "", err
	}
	c.event(events.ActionCommit, map[string]string{"comment": o.Comment, "imageID": id, "imageRef": o.Ref})
	return id, nil
}
