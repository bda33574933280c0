package keeper

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

var errNoSocket = errors.New("the keeper that had the socket of encrypted networks is gone")

// OpenCrypt has the UDP socket of encrypted overlays at an address; if it was at
// another one, the devices are gone.
func (c *Client) OpenCrypt(at netip.AddrPort) error {
	if c.At() == at {
		return nil
	}
	return c.with(true, func(l *link) error {
		_, err := l.call(request{OpenCrypt: &opening{at}})
		c.mu.Lock()
		defer c.mu.Unlock()
		c.at = netip.AddrPort{}
		clear(c.taps)
		if err == nil {
			c.at = at
		}
		return err
	})
}

// CloseCrypt closes it, by the time it returns; the devices go with it.
func (c *Client) CloseCrypt() error {
	if !c.At().IsValid() {
		return nil
	}
	return c.with(false, func(l *link) error {
		_, err := l.call(request{CloseCrypt: true})
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.at = netip.AddrPort{}
			clear(c.taps)
		}
		return err
	})
}

// AddTap has an overlay's device be carried, and takes its file; another one of the
// overlay goes.
func (c *Client) AddTap(t Tap, file int) error {
	defer closeFiles([]int{file})
	if !c.At().IsValid() {
		return errNoSocket
	}
	err := c.with(false, func(l *link) error {
		_, err := l.call(request{Tap: &t}, file)
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taps, t.Overlay)
		if err == nil {
			c.taps[t.Overlay] = t
		}
		return err
	})
	if _, there := c.Tap(t.Overlay); err == nil && !there {
		return errNoSocket
	}
	return err
}

// DropTap gives an overlay's device up. It is gone when DropTap returns.
func (c *Client) DropTap(overlay string) error {
	if _, there := c.Tap(overlay); !there {
		return nil
	}
	return c.with(false, func(l *link) error {
		_, err := l.call(request{DropTap: overlay})
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.taps, overlay)
		}
		return err
	})
}

// At is where the socket is; not valid if there is none.
func (c *Client) At() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// Tap returns an overlay's device.
func (c *Client) Tap(overlay string) (Tap, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, there := c.taps[overlay]
	return t, there
}

// Taps returns all devices.
func (c *Client) Taps() []Tap {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.taps))
}

// SetCrypt says how packets are protected, and, by overlay, who the other nodes are.
// The maps are not changed any more. What the keeper goes on with counts if there are
// no settings yet.
func (c *Client) SetCrypt(s Settings, peers map[string]Peers) error {
	c.mu.Lock()
	c.settings, c.peers = &s, peers
	c.mu.Unlock()
	return c.with(false, c.tellCrypt)
}

// Peers returns what the keeper knows of other nodes' endpoints, by overlay.
func (c *Client) Peers() map[string]Peers {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link == nil {
		return nil
	}
	return maps.Clone(c.link.peers)
}

// tellCrypt tells a keeper what has changed of encrypted overlays.
func (c *Client) tellCrypt(l *link) error {
	c.mu.Lock()
	settings, peers := c.settings, c.peers
	c.mu.Unlock()
	if settings == nil {
		return nil
	}
	if l.settings == nil || !l.settings.equal(settings) {
		if _, err := l.call(request{Settings: settings}); err != nil {
			return fmt.Errorf("tell keys: %w", err)
		}
		l.settings = settings
	}
	for _, d := range peersBetween(l.peers, peers) {
		if _, err := l.call(request{Peers: d}); err != nil {
			return fmt.Errorf("tell other nodes' endpoints: %w", err)
		}
	}
	l.peers = maps.Clone(peers)
	return nil
}

func (s *Settings) equal(o *Settings) bool {
	return s.Local == o.Local && s.Send == o.Send && slices.Equal(s.Keys, o.Keys)
}
