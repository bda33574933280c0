package containerd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Load implements engine.Images.
func (i *Images) Load(ctx context.Context, r io.Reader, want []ocispec.Platform, progress engine.Progress) error {
	r, done, err := decompress(r)
	if err != nil {
		return api.Errorf(api.Invalid, "load: the archive is malformed: %w", err)
	}
	defer done()
	ctx, free, err := i.begin(ctx)
	if err != nil {
		return err
	}
	err = i.load(ctx, r, want, progress)
	free()
	// What the archive had besides images, or all of it if it was malformed.
	if e := i.collect(context.WithoutCancel(i.in(ctx))); e != nil {
		i.cfg.Log.Warn("unused content of a loaded archive is still there", "error", e)
	}
	return err
}

func (i *Images) load(ctx context.Context, r io.Reader, want []ocispec.Platform, progress engine.Progress) error {
	src := &source{r: r}
	top, err := archive.ImportIndex(ctx, i.st.content, src)
	if err != nil {
		return src.blame(err)
	}
	if _, err := io.Copy(io.Discard, src); err != nil { // what pads the archive
		return src.blame(err)
	}
	var index ocispec.Index
	if err := i.readJSON(ctx, top, &index); err != nil {
		return err
	}
	if len(index.Manifests) == 0 {
		return api.Errorf(api.Invalid, "load: the archive has no image")
	}
	for _, d := range index.Manifests {
		if err := i.hold(ctx, d); err != nil {
			return err
		}
		if err := i.check(ctx, d, want); err != nil {
			return err
		}
	}
	for _, d := range index.Manifests {
		if err := i.loadOne(ctx, d, progress); err != nil {
			return err
		}
	}
	return nil
}

// source remembers whether reading failed, to tell a broken upload from a
// malformed archive.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) blame(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if classOf(err) == api.ResourceExhausted || strings.Contains(err.Error(), "no space left on device") {
		return api.Errorf(api.ResourceExhausted, "load: %w", err)
	}
	return api.Errorf(api.Invalid, "load: the archive is malformed: %w", err)
}

// decompress undoes gzip or zstd, told by the first bytes.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// begin is a context for adding content, which stays until done is called,
// and longer only where an image needs it.
func (i *Images) begin(ctx context.Context) (context.Context, func(), error) {
	return i.st.lease(i.in(ctx))
}

// hold labels an image's content with what it refers to, for the garbage
// collector. Platforms that are not in the archive are passed over.
func (i *Images) hold(ctx context.Context, top ocispec.Descriptor) error {
	label := images.SetChildrenMappedLabels(i.st.content, images.ChildrenHandler(i.st.content), nil)
	return images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if d.Size > maxConfigSize && !images.IsLayerType(d.MediaType) {
			return nil, api.Errorf(api.Invalid, "load: %s %s is larger than %d bytes", d.MediaType, d.Digest, maxConfigSize)
		}
		children, err := label(ctx, d)
		switch {
		case err == nil:
			return children, nil
		case errdefs.IsNotFound(err) && d.Digest != top.Digest:
			return nil, nil
		case errdefs.IsNotFound(err):
			return nil, api.Errorf(api.Invalid, "load: the archive is incomplete: %w", err)
		}
		return nil, api.Errorf(api.Invalid, "load: the archive is malformed: %w", err)
	}), top)
}

// check unpacks an image of the archive before anything of it gets a name, so
// that a malformed one leaves nothing behind.
func (i *Images) check(ctx context.Context, d ocispec.Descriptor, want []ocispec.Platform) error {
	if !images.IsIndexType(d.MediaType) && !images.IsManifestType(d.MediaType) {
		return api.Errorf(api.Invalid, "load: the archive has a %q where an image manifest is expected", d.MediaType)
	}
	if len(want) == 0 {
		v, err := i.variant(ctx, d, nil)
		if errors.Is(err, errPlatform) { // for other platforms; nothing to run here
			_, err := i.anyVariant(ctx, d)
			return err
		}
		if err != nil {
			return malformed(err)
		}
		_, err = i.unpack(ctx, v)
		return err
	}
	for _, p := range want {
		v, err := i.variant(ctx, d, &p)
		if err != nil {
			return malformed(err)
		}
		if _, err := i.unpack(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// anyVariant reads the first variant there is, of whatever platform.
func (i *Images) anyVariant(ctx context.Context, target ocispec.Descriptor) (*variant, error) {
	all, err := i.manifests(ctx, target)
	if err != nil {
		return nil, malformed(err)
	}
	for _, d := range all {
		if isAttestation(d) {
			continue
		}
		if v, err := i.readVariant(ctx, d); err == nil {
			return v, nil
		}
	}
	return nil, api.Errorf(api.Invalid, "image %s has no manifest whose content is there", target.Digest)
}

func malformed(err error) error {
	if api.Is(err, api.NotFound) && !errors.Is(err, errPlatform) {
		return api.Errorf(api.Invalid, "load: the archive is incomplete: %w", err)
	}
	return err
}

func (i *Images) loadOne(ctx context.Context, d ocispec.Descriptor, progress engine.Progress) error {
	target := ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	name, err := nameInArchive(d)
	if err != nil {
		return err
	}
	if name == "" {
		if err := i.keepDangling(ctx, target, ""); err != nil {
			return err
		}
		say(progress, "Loaded image ID: "+d.Digest.String())
		return nil
	}
	if err := i.setNameLocked(ctx, name, target); err != nil {
		return err
	}
	say(progress, "Loaded image: "+familiar(name))
	return nil
}

func say(progress engine.Progress, line string) {
	if progress != nil {
		progress(jsonstream.Message{Stream: line + "\n"})
	}
}

// nameInArchive is the full reference that an archive gives an image; OCI
// layouts may have just a tag there, which is no name.
func nameInArchive(d ocispec.Descriptor) (string, error) {
	name := d.Annotations[images.AnnotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, "/:") {
			return "", nil
		}
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", api.Errorf(api.Invalid, "load: the archive names an image %q: %w", name, err)
	}
	return reference.TagNameOnly(ref).String(), nil
}
