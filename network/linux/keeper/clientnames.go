package keeper

import (
	"fmt"
	"maps"
	"slices"

	"github.com/legion-swarm/legion/network"
)

// SetZones replaces the names. Queries that arrive after it has returned are answered
// by the new ones, as far as Narrow has not taken them back.
func (c *Client) SetZones(zones map[string]*network.Zone) error {
	c.mu.Lock()
	c.set, c.named = zones, true
	c.mu.Unlock()
	return c.with(false, c.tellZones)
}

// Narrow has what zones lack not be answered any more, now or by what SetZones is
// still to set; the next call replaces it.
func (c *Client) Narrow(zones map[string]*network.Zone) error {
	c.mu.Lock()
	c.newest = zones
	c.mu.Unlock()
	return c.with(false, c.tellZones)
}

// tellZones tells a keeper what has changed of names.
func (c *Client) tellZones(l *link) error {
	c.mu.Lock()
	named, set, newest := c.named, c.set, c.newest
	c.mu.Unlock()
	if !named { // an earlier daemon's go on
		return nil
	}
	zones := agreed(set, newest)
	if l.named && maps.Equal(zones, l.zones) {
		return nil
	}
	anew := !l.named
	l.named = false // until all is told
	for _, d := range zonesBetween(l.zones, zones, anew) {
		if _, err := l.call(request{Zones: d}); err != nil {
			return fmt.Errorf("tell names: %w", err)
		}
	}
	l.zones, l.named = zones, true
	return nil
}

// Answer has names answered at sockets in sandboxes, instead of any there before, by
// the time it returns. It takes the files: those of UDP and TCP, for each.
func (c *Client) Answer(l []Resolver, files []int) error {
	defer closeFiles(files)
	for part := range slices.Chunk(l, maxFiles/2) {
		err := c.with(true, func(k *link) error {
			_, err := k.call(request{Answer: part}, files[:2*len(part)]...)
			if err == nil {
				c.keepResolvers(part)
			}
			return err
		})
		if err != nil {
			return err
		}
		closeFiles(files[:2*len(part)])
		files = files[2*len(part):]
	}
	return nil
}

func (c *Client) keepResolvers(l []Resolver) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range l {
		c.resolvers[r.Sandbox] = r
	}
}

// Resolve changes how names are resolved in sandboxes that have a resolver, for
// queries that arrive after it has returned.
func (c *Client) Resolve(l []Resolver) error {
	return c.with(false, func(k *link) error {
		_, err := k.call(request{Resolve: l})
		if err == nil {
			c.keepResolvers(l)
		}
		return err
	})
}

// Forget closes the sockets in sandboxes, by the time it returns.
func (c *Client) Forget(sandboxes []string) error {
	sandboxes = slices.DeleteFunc(slices.Clone(sandboxes), func(id string) bool {
		_, there := c.Resolver(id)
		return !there
	})
	if len(sandboxes) == 0 {
		return nil
	}
	return c.with(false, func(k *link) error {
		_, err := k.call(request{Forget: sandboxes})
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, id := range sandboxes {
				delete(c.resolvers, id)
			}
		}
		return err
	})
}

// Resolver returns what answers in a sandbox.
func (c *Client) Resolver(sandbox string) (Resolver, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, there := c.resolvers[sandbox]
	return r, there
}

// Resolvers returns all of them.
func (c *Client) Resolvers() []Resolver {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.resolvers))
}
