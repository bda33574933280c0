package containerd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/legion-swarm/legion/api"
)

// maxSocketPath is what a Unix socket's path can hold, less one (unix(7)).
const maxSocketPath = 106

// busyShim is how many creations one shim is given at once before another shim
// is started beside it.
const busyShim = 16

// shims are the shim processes of this node.
type shims struct {
	mu  sync.Mutex
	all map[string]*shim

	dir       string // State/shims
	sockets   string // folder of the shims' sockets
	binary    string
	namespace string
	events    string // address that shims report events to
	limit     int    // containers a shim
	log       *slog.Logger
	wg        *sync.WaitGroup
	lost      func(*shim) // the connection broke
}

// socketDir is a folder below state for the shims' sockets, or, where their
// names of 64 hexadecimal digits would not fit, one under /run.
func socketDir(state string) string {
	dir := filepath.Join(state, "s")
	if len(dir)+1+2*sha256.Size <= maxSocketPath {
		return dir
	}
	sum := sha256.Sum256([]byte(state))
	return filepath.Join("/run/legion-s", hex.EncodeToString(sum[:6]))
}

// acquire returns a running shim with room for one more container. release
// gives the room back; created tells that the creation is over.
func (p *shims) acquire(ctx context.Context) (*shim, error) {
	p.mu.Lock()
	s := p.pick()
	if s == nil {
		s = &shim{id: newShimID(), gone: make(chan struct{}), ready: make(chan struct{})}
		s.dir = filepath.Join(p.dir, s.id)
		p.all[s.id] = s
		p.wg.Go(func() { p.launch(s) })
	}
	s.refs++
	s.creating++
	p.mu.Unlock()

	select {
	case <-s.ready:
		if s.err == nil {
			return s, nil
		}
		p.created(s)
		p.release(context.WithoutCancel(ctx), s)
		return nil, api.Errorf(api.Internal, "containerd: cannot start a runc shim: %w", s.err)
	case <-ctx.Done():
		p.created(s)
		p.release(context.WithoutCancel(ctx), s)
		return nil, ctx.Err()
	}
}

// pick chooses the shim with the fewest creations under way.
func (p *shims) pick() *shim {
	var best *shim
	for _, s := range p.all {
		if s.leaving || s.refs >= p.limit || s.creating >= busyShim {
			continue
		}
		if best == nil || s.creating < best.creating || s.creating == best.creating && s.id < best.id {
			best = s
		}
	}
	return best
}

// launch starts s; it is not bound to the call that asked first, since others
// wait for it too.
func (p *shims) launch(s *shim) {
	s.err = s.start(context.Background(), p)
	if s.err == nil {
		p.watch(s)
	} else {
		p.mu.Lock()
		s.leaving = true
		p.mu.Unlock()
	}
	close(s.ready)
}

// watch tells when the connection to s breaks though nobody closed it.
func (p *shims) watch(s *shim) {
	p.wg.Go(func() {
		<-s.gone
		p.mu.Lock()
		leaving := s.leaving
		s.leaving = true
		p.mu.Unlock()
		if !leaving {
			p.lost(s)
		}
	})
}

func (p *shims) created(s *shim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.creating--
}

// release gives back a container's room in s, and ends s with its last one.
func (p *shims) release(ctx context.Context, s *shim) {
	p.mu.Lock()
	s.refs--
	last := s.refs == 0
	if last {
		s.leaving = true
		delete(p.all, s.id)
	}
	p.mu.Unlock()
	if !last {
		return
	}
	<-s.ready
	if err := s.stop(ctx); err != nil {
		p.log.Warn("a runc shim did not end", "shim", s.id, "error", err)
	}
}

// adopt connects to a shim that an earlier process started. The returned
// shim's err is set when it does not answer: then it is dead.
func (p *shims) adopt(ctx context.Context, id string) *shim {
	s := &shim{id: id, dir: filepath.Join(p.dir, id), gone: make(chan struct{}), ready: make(chan struct{})}
	close(s.ready)
	err := s.reconnect(ctx)
	if err == nil {
		err = s.openLog(p)
	}
	if err != nil {
		s.err = fmt.Errorf("shim %s: %w", id, err)
		s.leaving = true
		s.disconnect()
		return s
	}
	p.mu.Lock()
	p.all[id] = s
	p.mu.Unlock()
	p.watch(s)
	return s
}

// close disconnects from all shims, which run on.
func (p *shims) close() {
	p.mu.Lock()
	all := make([]*shim, 0, len(p.all))
	for _, s := range p.all {
		s.leaving = true
		all = append(all, s)
	}
	p.mu.Unlock()
	for _, s := range all {
		<-s.ready
		s.disconnect()
	}
}

func newShimID() string { return "shim-" + rand.Text()[:13] }

// drop forgets a shim that died and removes what it left.
func (p *shims) drop(s *shim) {
	p.mu.Lock()
	s.leaving = true
	delete(p.all, s.id)
	p.mu.Unlock()
	if address, err := os.ReadFile(filepath.Join(s.dir, "address")); err == nil {
		_ = os.Remove(strings.TrimPrefix(string(address), "unix://"))
	}
	s.disconnect()
	if err := os.RemoveAll(s.dir); err != nil {
		p.log.Warn("cannot remove what a runc shim left", "shim", s.id, "error", err)
	}
}
