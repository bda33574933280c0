package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/legion-swarm/legion/api"
)

const (
	// settle is how long Run lets changes by others come to an end before it
	// repairs; tick is how often it looks without being told.
	settle = 500 * time.Millisecond
	tick   = time.Minute
	// rewatch is how long Run waits before it watches again after a failure.
	rewatch = 5 * time.Second
)

// Keep tells which containers still exist. Those that were attached and aren't
// named lose their namespace, and what is left is made as it should be. Call
// it once, after New. Failures to repair are retried by Run; they are returned
// so that the caller can say so.
func (n *Networks) Keep(ctx context.Context, ids []string) error {
	keep := make(map[string]bool, len(ids))
	for _, id := range ids {
		keep[id] = true
	}
	n.mu.Lock()
	for id, b := range n.boxes {
		if !keep[id] {
			n.uninstall(b)
			n.files.want(n.o.RuntimeDir, id, nil)
			n.release(b.Endpoints)
		}
	}
	n.forgetOverlays()
	n.mu.Unlock()
	for _, id := range n.taskContainers() {
		if !keep[id] {
			n.dropTask(id)
		}
	}
	n.writeFiles()
	// Keys may be on their way: Run says so if they stay away.
	if _, err := withoutKeys(n.set.commit(ctx, n.config)); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

// Run repairs what others change: it sets the data plane anew when told that
// something of it may be different, when something could not be done before,
// and once a minute. It blocks until ctx ends.
func (n *Networks) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	watcher := make(chan struct{})
	defer func() { cancel(); <-watcher }()
	go func() {
		defer close(watcher)
		n.watch(ctx, changed)
	}()
	follower := make(chan struct{})
	defer func() { cancel(); <-follower }()
	go func() {
		defer close(follower)
		n.followHost(ctx)
	}()
	kicked := make(chan struct{}, 1)
	narrower := make(chan struct{})
	defer func() { cancel(); <-narrower }()
	go func() {
		defer close(narrower)
		n.followKicks(ctx, kicked)
	}()
	keeper := make(chan struct{})
	defer func() { cancel(); <-keeper }()
	go func() {
		defer close(keeper)
		n.runPlaces(ctx)
	}()
	t := time.NewTicker(tick)
	defer t.Stop()
	defer n.saveTold()
	var settled, saved <-chan time.Time
	report := reporter{n: n}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			if settled == nil {
				settled = time.After(settle)
			}
			continue
		case <-settled:
			settled = nil
		case <-saved:
			if saved = nil; n.saveTold() {
				saved = time.After(saveGap)
			}
			continue
		case <-kicked:
			n.offerGateway(ctx)
		case <-t.C:
			n.lookAtMTUs(ctx)
		}
		report.set(ctx)
		if saved == nil && n.saveTold() {
			saved = time.After(saveGap)
		}
	}
}

// followKicks passes kicks on until ctx ends. Names are taken back before, since
// Run may be waiting for a Set.
func (n *Networks) followKicks(ctx context.Context, kicked chan<- struct{}) {
	for {
		select {
		case <-n.kicked:
		case <-ctx.Done():
			return
		}
		n.set.narrow(n.config)
		select {
		case kicked <- struct{}{}:
		default:
		}
	}
}

// watch has the data plane watched until ctx ends.
func (n *Networks) watch(ctx context.Context, changed chan<- struct{}) {
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	for {
		err := n.plane.Watch(ctx, notify)
		if ctx.Err() != nil {
			return
		}
		n.log.Warn("network: changes by others go unnoticed for a moment", "error", err)
		if !pause(ctx, rewatch) {
			return
		}
		notify()
	}
}

// pause waits; it reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Close ends the use of Networks: nothing more can be changed, and no change is
// under way when it returns. What is in the kernel stays, so that containers
// keep their network while the daemon is away. With removeAll it goes, bridges
// and rules included, which is refused while a container has a namespace or the
// node answers for ports of services. It is made again by the next New and Keep.
func (n *Networks) Close(ctx context.Context, removeAll bool) error {
	n.mu.Lock()
	if attached := len(n.boxes); removeAll && (attached > 0 || n.publishes()) {
		n.mu.Unlock()
		return api.Errorf(api.Conflict, "network: %d containers are attached, or the node answers for ports of services", attached)
	}
	n.closed = true
	n.mu.Unlock()
	var err error
	if removeAll {
		if err = n.set.commit(ctx, func() *Config { return &Config{} }); err == nil {
			err = errors.Join(removeEmpty(n.overlaysDir()), n.removeTold(), removeEmpty(n.o.RuntimeDir))
		}
	}
	n.set.wait()
	if !removeAll {
		n.saveTold()
	}
	return err
}

// removeEmpty removes a folder; one that is not empty is no error.
func removeEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// Counters returns what a container's interfaces have carried, by interface.
// A container that shares the host's network has none.
func (n *Networks) Counters(ctx context.Context, id string) ([]Counters, error) {
	n.mu.Lock()
	b := n.boxes[id]
	n.mu.Unlock()
	switch {
	case b == nil:
		return nil, api.Errorf(api.NotFound, "container %s has no network: it isn't running", id)
	case b.sandbox == nil || len(b.sandbox.Interfaces) == 0:
		return nil, nil
	}
	return n.plane.Counters(ctx, id)
}
