package containerd

import (
	"context"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/engine"
)

// progressEvery is how often a layer's progress is told at most.
const progressEvery = 100 * time.Millisecond

// transfer tells a pull's or push's progress in docker's words, by layer.
type transfer struct {
	say engine.Progress
}

func shortID(d digest.Digest) string { return d.Encoded()[:12] }

func (t *transfer) add(d digest.Digest) { t.status(d, "Pulling fs layer") }

func (t *transfer) status(d digest.Digest, text string) {
	t.say(jsonstream.Message{ID: shortID(d), Status: text, Progress: &jsonstream.Progress{}})
}

func (t *transfer) progress(d digest.Digest, text string, now, total int64) {
	t.say(jsonstream.Message{ID: shortID(d), Status: text, Progress: &jsonstream.Progress{Current: now, Total: total}})
}

// counted is a fetcher that tells how far each layer is.
func (t *transfer) counted(f remotes.Fetcher) remotes.Fetcher {
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		rc, err := f.Fetch(ctx, d)
		if err != nil {
			return nil, err
		}
		c := &counter{ReadCloser: rc, tell: func(n int64) { t.progress(d.Digest, "Downloading", n, d.Size) }}
		if s, ok := rc.(io.Seeker); ok {
			return &seekCounter{c, s}, nil
		}
		return c, nil
	})
}

type counter struct {
	io.ReadCloser
	n    int64
	last time.Time
	tell func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	if now := time.Now(); now.Sub(c.last) >= progressEvery {
		c.last = now
		c.tell(c.n)
	}
	return n, err
}

// seekCounter lets a download be resumed in the middle.
type seekCounter struct {
	*counter
	s io.Seeker
}

func (c *seekCounter) Seek(offset int64, whence int) (int64, error) {
	n, err := c.s.Seek(offset, whence)
	if err == nil {
		c.n = n
	}
	return n, err
}
