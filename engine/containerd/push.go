package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Push implements engine.Images.
func (i *Images) Push(ctx context.Context, ref string, o engine.PullOptions, progress engine.Progress) error {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return api.Errorf(api.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	if _, ok := n.(reference.Digested); ok {
		return api.Errorf(api.Invalid, "cannot push a digest reference")
	}
	if progress == nil {
		progress = func(jsonstream.Message) {}
	}
	ctx = i.in(ctx)
	progress(jsonstream.Message{Status: "The push refers to repository [" + n.Name() + "]"})
	if !o.AllTags {
		return i.pushOne(ctx, reference.TagNameOnly(n), o, progress)
	}
	all, err := i.st.images.List(ctx)
	if err != nil {
		return classify(err, "containerd: images")
	}
	pushed := 0
	for _, img := range all {
		r, err := reference.ParseNormalizedNamed(img.Name)
		if err != nil || r.Name() != n.Name() {
			continue
		}
		if _, ok := r.(reference.Tagged); !ok {
			continue
		}
		if err := i.pushOne(ctx, r, o, progress); err != nil {
			return err
		}
		pushed++
	}
	if pushed == 0 {
		return api.Errorf(api.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(n))
	}
	return nil
}

func (i *Images) pushOne(ctx context.Context, ref reference.Named, o engine.PullOptions, say engine.Progress) error {
	img, err := i.st.images.Get(ctx, ref.String())
	if err != nil {
		return api.Errorf(api.NotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(ref))
	}
	target, err := i.pushable(ctx, img.Target, o.Platform)
	if err != nil {
		return err
	}
	s, err := i.session(ref, o.Auth, true)
	if err != nil {
		return err
	}
	defer s.close()
	pusher, err := s.Pusher(ctx, ref.String()+"@"+target.Digest.String())
	if err != nil {
		return s.remoteError(err, "push")
	}
	t := &transfer{say: serial(say)}
	wrap := func(h images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if !images.IsLayerType(d.MediaType) {
				return h.Handle(ctx, d)
			}
			t.status(d.Digest, "Preparing")
			children, err := h.Handle(ctx, d)
			if err == nil {
				t.status(d.Digest, "Pushed")
			}
			return children, err
		})
	}
	limit := semaphore.NewWeighted(int64(i.cfg.MaxUploads))
	err = remotes.PushContent(ctx, pusher, target, &sending{Store: i.st.content, t: t}, limit, platforms.All, wrap)
	if err != nil {
		return s.remoteError(err, "push")
	}
	return i.pushed(ref, target, say)
}

func (i *Images) pushed(ref reference.Named, target ocispec.Descriptor, say engine.Progress) error {
	tag := tagOf(ref)
	say(jsonstream.Message{Status: fmt.Sprintf("%s: digest: %s size: %d", tag, target.Digest, target.Size)})
	aux, err := json.Marshal(struct {
		Tag, Digest string
		Size        int64
	}{tag, target.Digest.String(), target.Size})
	if err != nil {
		return err
	}
	say(jsonstream.Message{Aux: (*json.RawMessage)(&aux)})
	return nil
}

// serial makes a Progress safe to call from several goroutines.
func serial(p engine.Progress) engine.Progress {
	var mu sync.Mutex
	return func(m jsonstream.Message) {
		mu.Lock()
		defer mu.Unlock()
		p(m)
	}
}

// pushable is what of the target can be sent: all of it, or, of an index that
// is here in part, the manifest for the platform.
func (i *Images) pushable(ctx context.Context, target ocispec.Descriptor, p *ocispec.Platform) (ocispec.Descriptor, error) {
	if p == nil {
		if !images.IsIndexType(target.MediaType) {
			return target, nil
		}
		all, err := i.manifests(ctx, target)
		if err != nil {
			return target, err
		}
		whole := true
		for _, d := range all {
			v, err := i.readVariant(ctx, d)
			whole = whole && err == nil && i.hasLayers(ctx, v)
		}
		if whole {
			return target, nil
		}
	}
	v, err := i.variant(ctx, target, p)
	if errors.Is(err, errPlatform) && p == nil {
		if v, err = i.anyVariant(ctx, target); err != nil {
			return target, err
		}
	}
	if err != nil {
		return target, err
	}
	return plain(v.desc), nil
}

func (i *Images) hasLayers(ctx context.Context, v *variant) bool {
	for _, l := range v.manifest.Layers {
		if _, err := i.st.content.Info(ctx, l.Digest); err != nil {
			return false
		}
	}
	return true
}

// sending is a content store that tells how far each layer is read.
type sending struct {
	content.Store
	t *transfer
}

func (s *sending) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := s.Store.ReaderAt(ctx, d)
	if err != nil || !images.IsLayerType(d.MediaType) {
		return ra, err
	}
	return &countingReaderAt{ReaderAt: ra, tell: func(n int64) { s.t.progress(d.Digest, "Pushing", n, d.Size) }}, nil
}

// countingReaderAt is read from beginning to end by one goroutine.
type countingReaderAt struct {
	content.ReaderAt
	last time.Time
	tell func(int64)
}

func (r *countingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	if now := time.Now(); now.Sub(r.last) >= progressEvery {
		r.last = now
		r.tell(off + int64(n))
	}
	return n, err
}

// Distribution implements engine.Images.
func (i *Images) Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (*registry.DistributionInspect, error) {
	named, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	s, err := i.session(named, auth, false)
	if err != nil {
		return nil, err
	}
	defer s.close()
	ctx = i.in(ctx)
	_, target, err := s.Resolve(ctx, named.String())
	if err != nil {
		return nil, s.remoteError(err, "pull")
	}
	fetcher, err := s.Fetcher(ctx, named.String())
	if err != nil {
		return nil, s.remoteError(err, "pull")
	}
	out := &registry.DistributionInspect{Descriptor: plain(target)}
	if images.IsIndexType(target.MediaType) {
		var index ocispec.Index
		if err := s.readRemote(ctx, fetcher, target, &index); err != nil {
			return nil, err
		}
		for _, m := range index.Manifests {
			if m.Platform != nil {
				out.Platforms = append(out.Platforms, *m.Platform)
			}
		}
		return out, nil
	}
	var manifest ocispec.Manifest
	var config ocispec.Image
	if err := s.readRemote(ctx, fetcher, target, &manifest); err != nil {
		return nil, err
	}
	if err := s.readRemote(ctx, fetcher, manifest.Config, &config); err != nil {
		return nil, err
	}
	out.Platforms = append(out.Platforms, config.Platform)
	return out, nil
}

// readRemote reads a small blob from the registry, checking its digest.
func (s *session) readRemote(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor, into any) error {
	if d.Size > maxConfigSize {
		return api.Errorf(api.Invalid, "%s %s is larger than %d bytes", d.MediaType, d.Digest, maxConfigSize)
	}
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return s.remoteError(err, "pull")
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, maxConfigSize))
	if err != nil {
		return s.remoteError(err, "pull")
	}
	if d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return api.Errorf(api.Invalid, "the registry sent content that does not match its digest %s", d.Digest)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return api.Errorf(api.Invalid, "the registry sent malformed content for %s: %w", d.Digest, err)
	}
	return nil
}
