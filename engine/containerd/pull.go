package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// pull is one transfer that any number of callers wait for.
type pull struct {
	done chan struct{}
	err  error
	stop context.CancelFunc

	mu      sync.Mutex
	waiting map[*engine.Progress]struct{}
	last    map[string]jsonstream.Message // by layer, for who joins later
}

// Pull implements engine.Images. Callers that ask for the same at the same
// time share one transfer; it ends early when the last of them gives up.
func (i *Images) Pull(ctx context.Context, ref string, o engine.PullOptions, progress engine.Progress) error {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return api.Errorf(api.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	if o.AllTags {
		return i.pullAll(ctx, n, o, progress)
	}
	named, err := parseRef(ref)
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(jsonstream.Message) {}
	}
	p := i.join(ctx, named, o, &progress)
	defer i.leave(p, &progress)
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// join returns the transfer for the reference, a new one if there is none.
func (i *Images) join(ctx context.Context, ref reference.Named, o engine.PullOptions, progress *engine.Progress) *pull {
	key := pullKey(ref, o)
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pulls[key]
	if p != nil && p.subscribe(progress) {
		return p
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	p = &pull{
		done: make(chan struct{}), stop: stop,
		waiting: map[*engine.Progress]struct{}{progress: {}}, last: make(map[string]jsonstream.Message),
	}
	i.pulls[key] = p
	i.r.wg.Go(func() {
		p.err = i.pull(run, ref, o, p.say)
		stop()
		i.mu.Lock()
		if i.pulls[key] == p {
			delete(i.pulls, key)
		}
		i.mu.Unlock()
		close(p.done)
	})
	return p
}

// subscribe fails when everybody left already.
func (p *pull) subscribe(progress *engine.Progress) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		return false
	}
	p.waiting[progress] = struct{}{}
	for _, m := range p.last {
		(*progress)(m)
	}
	return true
}

func (i *Images) leave(p *pull, progress *engine.Progress) {
	p.mu.Lock()
	delete(p.waiting, progress)
	empty := len(p.waiting) == 0
	p.mu.Unlock()
	if empty {
		p.stop()
	}
}

func (p *pull) say(m jsonstream.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.ID != "" {
		p.last[m.ID] = m
	}
	for progress := range p.waiting {
		(*progress)(m)
	}
}

// pullKey tells transfers apart that must not be shared: credentials included.
func pullKey(ref reference.Named, o engine.PullOptions) string {
	secret, _ := json.Marshal(o.Auth)
	sum := sha256.Sum256(secret)
	platform := ""
	if o.Platform != nil {
		platform = platforms.FormatAll(*o.Platform)
	}
	return ref.String() + " " + platform + " " + hex.EncodeToString(sum[:])
}

func (i *Images) pull(ctx context.Context, ref reference.Named, o engine.PullOptions, say engine.Progress) error {
	s, err := i.session(ref, o.Auth, false)
	if err != nil {
		return err
	}
	defer s.close()
	ctx, done, err := i.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, target, err := s.Resolve(ctx, ref.String())
	if err != nil {
		return s.remoteError(err, "pull")
	}
	say(jsonstream.Message{Status: "Pulling from " + reference.Path(ref), ID: tagOf(ref)})
	old, err := i.st.images.Get(ctx, ref.String())
	if err != nil && !errdefs.IsNotFound(err) {
		return classify(err, "containerd: image %s", ref)
	}
	before := old.Target.Digest
	if before == target.Digest {
		if v, err := i.variant(ctx, target, o.Platform); err == nil && i.complete(ctx, v) {
			return i.pulled(ctx, ref, target, v, true, say)
		}
	}
	t := &transfer{say: say}
	if err := i.fetch(ctx, s, target, o.Platform, t); err != nil {
		return err
	}
	v, err := i.variant(ctx, target, o.Platform)
	if err != nil {
		if errors.Is(err, errPlatform) {
			return api.Errorf(api.NotFound, "no matching manifest for %s in the manifest list entries: %w", platformName(o.Platform), err)
		}
		return err
	}
	if err := i.unpackWith(ctx, v, t); err != nil {
		return err
	}
	return i.pulled(ctx, ref, target, v, false, say)
}

func platformName(p *ocispec.Platform) string {
	if p == nil {
		return platforms.DefaultString()
	}
	return platforms.Format(*p)
}

func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return ""
}

// complete tells whether all of a variant's content is here, or unpacked.
func (i *Images) complete(ctx context.Context, v *variant) bool {
	if _, err := i.st.snapshots.Stat(ctx, identity.ChainID(v.config.RootFS.DiffIDs).String()); err != nil && len(v.config.RootFS.DiffIDs) > 0 {
		return false
	}
	for _, l := range v.manifest.Layers {
		if _, err := i.st.content.Info(ctx, l.Digest); err != nil {
			return false
		}
	}
	return true
}

// pulled names the image and says the closing lines.
func (i *Images) pulled(ctx context.Context, ref reference.Named, target ocispec.Descriptor, v *variant, same bool, say engine.Progress) error {
	if _, err := i.unpack(ctx, v); err != nil {
		return err
	}
	if err := i.setNameLocked(ctx, ref.String(), plain(target)); err != nil {
		return err
	}
	say(jsonstream.Message{Status: "Digest: " + target.Digest.String()})
	status := "Status: Downloaded newer image for "
	if same {
		status = "Status: Image is up to date for "
	}
	say(jsonstream.Message{Status: status + reference.FamiliarString(ref)})
	return nil
}

func plain(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// fetch copies the target's content for a platform.
func (i *Images) fetch(ctx context.Context, s *session, target ocispec.Descriptor, p *ocispec.Platform, t *transfer) error {
	if !images.IsIndexType(target.MediaType) && !images.IsManifestType(target.MediaType) {
		return api.Errorf(api.Invalid, "%s is a %q, not an image", reference.FamiliarString(s.ref), target.MediaType)
	}
	if target.Size > maxConfigSize {
		return api.Errorf(api.Invalid, "the manifest of %s is larger than %d bytes", reference.FamiliarString(s.ref), maxConfigSize)
	}
	fetcher, err := s.Fetcher(ctx, s.ref.String())
	if err != nil {
		return s.remoteError(err, "pull")
	}
	want := matcher(p)
	children := images.SetChildrenMappedLabels(i.st.content, images.ChildrenHandler(i.st.content), nil)
	children = images.LimitManifests(images.FilterPlatforms(children, want), want, 1)
	handler := images.Handlers(
		images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if images.IsLayerType(d.MediaType) {
				return nil, i.fetchLayer(ctx, fetcher, d, t)
			}
			if d.Size > maxConfigSize {
				return nil, api.Errorf(api.Invalid, "%s %s of %s is larger than %d bytes", d.MediaType, d.Digest, reference.FamiliarString(s.ref), maxConfigSize)
			}
			return nil, i.fetchBlob(ctx, fetcher, d)
		}),
		images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			found, err := children(ctx, d)
			for _, c := range found {
				if images.IsLayerType(c.MediaType) {
					t.add(c.Digest)
				}
			}
			return found, err
		}),
	)
	err = images.Dispatch(ctx, handler, semaphore.NewWeighted(int64(i.cfg.MaxDownloads)), target)
	if errdefs.IsNotFound(err) && images.IsIndexType(target.MediaType) {
		if _, e := i.variant(ctx, target, p); errors.Is(e, errPlatform) {
			return api.Errorf(api.NotFound, "no matching manifest for %s in the manifest list entries: %w", platformName(p), e)
		}
	}
	return s.remoteError(err, "pull")
}

func (i *Images) fetchLayer(ctx context.Context, fetcher remotes.Fetcher, d ocispec.Descriptor, t *transfer) error {
	if _, err := i.st.content.Info(ctx, d.Digest); err == nil {
		t.status(d.Digest, "Already exists")
		return nil
	}
	if err := i.fetchBlob(ctx, t.counted(fetcher), d); err != nil {
		return fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	t.status(d.Digest, "Download complete")
	return nil
}

// fetchBlob copies one blob. What broke off is gone on with the next time;
// what came damaged is not kept.
func (i *Images) fetchBlob(ctx context.Context, fetcher remotes.Fetcher, d ocispec.Descriptor) error {
	err := remotes.Fetch(ctx, i.st.content, fetcher, d)
	switch {
	case err == nil || errdefs.IsAlreadyExists(err):
		return nil
	case errdefs.IsFailedPrecondition(err):
		_ = i.st.content.Abort(ctx, remotes.MakeRefKey(ctx, d))
		return api.Errorf(api.Unavailable, "the registry sent damaged content for %s: %w", d.Digest, err)
	}
	return err
}

// unpackWith unpacks layer by layer and tells about each.
func (i *Images) unpackWith(ctx context.Context, v *variant, t *transfer) error {
	layers, err := layersOf(v)
	if err != nil {
		return err
	}
	var chain []digest.Digest
	for _, l := range layers {
		t.status(l.Blob.Digest, "Extracting")
		if _, err := rootfs.ApplyLayer(ctx, l, chain, i.st.snapshots, i.st.applier); err != nil {
			return unpackError(err, v)
		}
		chain = append(chain, l.Diff.Digest)
		t.status(l.Blob.Digest, "Pull complete")
	}
	return nil
}
