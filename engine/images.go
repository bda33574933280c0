package engine

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
)

// Images is the node's image store. The real one is package
// engine/containerd; both it and the fake pass enginetest.Images. A name is
// anything that docker accepts: a familiar reference (tag :latest implied), a
// reference by digest, an image id or an unambiguous prefix of one.
type Images interface {
	// Resolve finds an image, without asking a registry.
	// NotFound: "No such image: NAME".
	Resolve(ctx context.Context, name string) (*Image, error)
	// Pull fetches by reference; progress may be nil. Errors tell "not found"
	// from "unauthorized" from "unreachable".
	Pull(ctx context.Context, ref string, o PullOptions, progress Progress) error
	Push(ctx context.Context, ref string, o PullOptions, progress Progress) error
	// Distribution asks the registry for the manifest's descriptor.
	Distribution(ctx context.Context, ref string, auth *registry.AuthConfig) (*registry.DistributionInspect, error)
	// Load reads a Docker archive or an OCI layout (plain, gzip or zstd) and
	// reports "Loaded image: NAME" lines through progress.
	Load(ctx context.Context, r io.Reader, platforms []ocispec.Platform, progress Progress) error
	Save(ctx context.Context, names []string, platforms []ocispec.Platform, w io.Writer) error
	// Import makes an image from a tar of a root file system; returns its id.
	Import(ctx context.Context, r io.Reader, ref string, o ImportOptions) (string, error)
	// Commit makes an image from a container's root file system.
	Commit(ctx context.Context, containerID string, o CommitOptions) (string, error)
	Tag(ctx context.Context, name, ref string) error
	List(ctx context.Context, o ImageListOptions) ([]image.Summary, error)
	Inspect(ctx context.Context, name string, o ImageInspectOptions) (*image.InspectResponse, error)
	History(ctx context.Context, name string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)
	// Remove untags, and deletes the image with its last tag. inUse tells
	// whether a container needs the image: Conflict, unless force for a stopped one.
	Remove(ctx context.Context, name string, o ImageRemoveOptions, inUse func(id string) (container string, running bool)) ([]image.DeleteResponse, error)
	Prune(ctx context.Context, f api.Filters, inUse func(id string) bool) (*image.PruneReport, error)
	// Usage returns the bytes that all images and unshared layers take.
	Usage(ctx context.Context) (int64, error)
}

// Image is what the engine needs of an image to make a container.
type Image struct {
	ID       string // digest of the manifest or index, "sha256:…", as Docker 29 shows with containerd's store
	Name     string // familiar reference it was found by; the id if none
	Config   ocispec.Image
	Docker   DockerImageConfig
	Digest   string // of the manifest or index, for RepoDigests
	Platform string
}

// DockerImageConfig is the part of an image's config that OCI does not have.
type DockerImageConfig struct {
	Healthcheck *HealthConfig
	Shell       []string
	OnBuild     []string
}

// Progress receives messages in Docker's stream format, in order.
type Progress func(jsonstream.Message)

// PullOptions are for Pull and Push.
type PullOptions struct {
	Platform *ocispec.Platform
	Auth     *registry.AuthConfig
	AllTags  bool
}

// ImportOptions are for Import.
type ImportOptions struct {
	Message  string
	Changes  []string
	Platform *ocispec.Platform
}

// ImageListOptions are for List.
type ImageListOptions struct {
	All        bool
	Filters    api.Filters
	SharedSize bool
	Manifests  bool
}

// ImageInspectOptions are for Inspect.
type ImageInspectOptions struct {
	Manifests bool
	Platform  *ocispec.Platform
}

// ImageRemoveOptions are for Remove.
type ImageRemoveOptions struct {
	Force         bool
	PruneChildren bool
	Platforms     []ocispec.Platform
}
