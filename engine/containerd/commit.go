package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	docker "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Import implements engine.Images.
func (i *Images) Import(ctx context.Context, r io.Reader, ref string, o engine.ImportOptions) (string, error) {
	name, err := newName(ref)
	if err != nil {
		return "", err
	}
	r, undo, err := decompress(r)
	if err != nil {
		return "", api.Errorf(api.Invalid, "import: the archive is malformed: %w", err)
	}
	defer undo()
	config := dockerspec.DockerOCIImage{}
	config.Platform = ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	if o.Platform != nil {
		config.Platform = platforms.Normalize(*o.Platform)
	}
	if err := applyChanges(&config.Config, o.Changes); err != nil {
		return "", err
	}
	comment := o.Message
	if comment == "" {
		comment = "Imported from -"
	}
	ctx, done, err := i.begin(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	layer, diffID, err := i.writeLayer(ctx, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
	if err != nil {
		return "", err
	}
	history := ocispec.History{Comment: comment}
	id, err := i.writeImage(ctx, config, ocispec.Manifest{}, history, layer, diffID, name)
	if api.Is(err, api.Invalid) {
		err = api.Errorf(api.Invalid, "import: not a tar archive of a root file system: %w", err)
	}
	return id, err
}

// newName checks a name for a new image; "" is none.
func newName(ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", api.Errorf(api.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	if _, ok := n.(reference.Digested); ok {
		return "", api.Errorf(api.Invalid, "cannot give an image a name with a digest: %s", ref)
	}
	return reference.TagNameOnly(n).String(), nil
}

// Commit implements engine.Images.
func (i *Images) Commit(ctx context.Context, containerID string, o engine.CommitOptions) (_ string, err error) {
	name, err := newName(o.Ref)
	if err != nil {
		return "", err
	}
	ctx, done, err := i.begin(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	config, manifest, err := i.baseOf(ctx, containerID)
	if err != nil {
		return "", err
	}
	if o.Config != nil {
		setConfig(&config.Config, o.Config)
	}
	if err := applyChanges(&config.Config, o.Changes); err != nil {
		return "", err
	}
	if o.Author != "" {
		config.Author = o.Author
	}
	if o.Pause {
		if err := i.r.Pause(ctx, containerID); err == nil {
			defer func() { err = errors.Join(err, i.r.Resume(context.WithoutCancel(ctx), containerID)) }()
		} else if !api.Is(err, api.Conflict) && !api.Is(err, api.NotFound) {
			return "", err
		}
	}
	layer, diffID, err := i.writeLayer(ctx, func(w io.Writer) error { return i.r.writeDiff(ctx, containerID, w) })
	if err != nil {
		return "", err
	}
	history := ocispec.History{Author: config.Author, Comment: o.Comment, CreatedBy: createdBy(o.Config)}
	return i.writeImage(ctx, config, manifest, history, layer, diffID, name)
}

func createdBy(c *docker.Config) string {
	if c == nil || len(c.Cmd) == 0 {
		return ""
	}
	b, err := json.Marshal(c.Cmd)
	if err != nil {
		return ""
	}
	return string(b)
}

// baseOf reads the config and manifest of the image of a container.
func (i *Images) baseOf(ctx context.Context, containerID string) (config dockerspec.DockerOCIImage, manifest ocispec.Manifest, err error) {
	from, err := i.r.layers.origin(ctx, containerID)
	if err != nil {
		return config, manifest, err
	}
	if from.image == "" {
		config.Platform = ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
		return config, manifest, nil
	}
	f, err := i.findByID(ctx, from.image)
	if err != nil {
		return config, manifest, err
	}
	var p *ocispec.Platform
	if from.platform != "" {
		parsed, err := platforms.Parse(from.platform)
		if err != nil {
			return config, manifest, err
		}
		p = &parsed
	}
	v, err := i.variant(ctx, f.target, p)
	if err != nil {
		return config, manifest, err
	}
	return config, v.manifest, i.readJSON(ctx, v.manifest.Config, &config)
}

// writeDiff writes what a container changed as a layer.
func (r *Runtime) writeDiff(ctx context.Context, id string, w io.Writer) error {
	mounts, err := r.layers.mounts(ctx, id)
	if err != nil {
		return err
	}
	root := upperOf(mounts)
	if root == "" {
		dir, release, err := r.mountAt(mounts)
		if err != nil {
			return err
		}
		defer func() { _ = release() }()
		root = dir
	}
	cw := archive.NewChangeWriter(w, root)
	if err := r.diff(ctx, id, cw.HandleChange); err != nil {
		return err
	}
	return cw.Close()
}

// writeLayer compresses a tar into the content store; the second digest is of
// what it was before.
func (i *Images) writeLayer(ctx context.Context, produce func(io.Writer) error) (d ocispec.Descriptor, diffID digest.Digest, err error) {
	ref := "legion-layer-" + newShimID()
	cw, err := content.OpenWriter(ctx, i.st.content, content.WithRef(ref))
	if err != nil {
		return d, "", classify(err, "containerd: write a layer")
	}
	defer func() {
		err = errors.Join(err, cw.Close())
		if err != nil {
			_ = i.st.content.Abort(context.WithoutCancel(ctx), ref)
		}
	}()
	whole, packed := digest.Canonical.Digester(), digest.Canonical.Digester()
	size := &sizer{}
	z := gzip.NewWriter(io.MultiWriter(cw, packed.Hash(), size))
	if err := produce(io.MultiWriter(z, whole.Hash())); err != nil {
		return d, "", classify(err, "write a layer")
	}
	if err := z.Close(); err != nil {
		return d, "", err
	}
	d = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: packed.Digest(), Size: size.n}
	if err := cw.Commit(ctx, d.Size, d.Digest); err != nil && !errdefs.IsAlreadyExists(err) {
		return d, "", classify(err, "containerd: write a layer")
	}
	return d, whole.Digest(), nil
}

type sizer struct{ n int64 }

func (s *sizer) Write(p []byte) (int, error) { s.n += int64(len(p)); return len(p), nil }

// writeImage adds a layer to a config and manifest, unpacks it and names it.
func (i *Images) writeImage(ctx context.Context, config dockerspec.DockerOCIImage, m ocispec.Manifest, h ocispec.History, layer ocispec.Descriptor, diffID digest.Digest, name string) (string, error) {
	now := time.Now().UTC()
	h.Created, config.Created = &now, &now
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	config.History = append(config.History, h)
	layers := append(append([]ocispec.Descriptor(nil), m.Layers...), layer)

	configDesc, err := i.writeBlob(ctx, ocispec.MediaTypeImageConfig, config)
	if err != nil {
		return "", err
	}
	target, err := i.writeBlob(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: configDesc, Layers: layers,
	})
	if err != nil {
		return "", err
	}
	if err := i.hold(ctx, target); err != nil {
		return "", err
	}
	v, err := i.readVariant(ctx, target)
	if err != nil {
		return "", err
	}
	if _, err := i.unpack(ctx, v); err != nil {
		return "", err
	}
	if name == "" {
		return target.Digest.String(), i.keepDangling(ctx, target, "")
	}
	return target.Digest.String(), i.setNameLocked(ctx, name, target)
}

func (i *Images) writeBlob(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err = content.WriteBlob(ctx, i.st.content, "legion-blob-"+d.Digest.String(), bytes.NewReader(b), d)
	return d, classify(err, "containerd: write %s", mediaType)
}
