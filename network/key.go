package network

import "fmt"

// Key protects what encrypted overlays send. All nodes of the swarm have the
// same keys.
type Key struct {
	// ID names the key on the wire; a later key has a greater one.
	ID     uint32
	Secret [32]byte
}

// maxKeys is how many keys there may be at a time: one that goes, one in use,
// one that comes.
const maxKeys = 3

// String never has the secret.
func (k Key) String() string { return fmt.Sprintf("key %d", k.ID) }

// Keys are in use together: what is received may be protected by any of them.
type Keys struct {
	// All keys by ascending id.
	All []Key
	// Send is the id of the one to send with.
	Send uint32
}

func (c *Config) validateKeys() error {
	found := len(c.Keys.All) == 0 && c.Keys.Send == 0
	for i, k := range c.Keys.All {
		if i > 0 && c.Keys.All[i-1].ID >= k.ID {
			return fmt.Errorf("keys are not in order")
		}
		found = found || k.ID == c.Keys.Send
	}
	if len(c.Keys.All) > maxKeys || !found {
		return fmt.Errorf("%d keys, of which %d is to be sent with", len(c.Keys.All), c.Keys.Send)
	}
	return nil
}
