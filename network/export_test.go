package network

import "context"

// Agree does what Run does every few minutes.
func (n *Networks) Agree(ctx context.Context) error {
	n.mu.Lock()
	n.places.check = true
	n.mu.Unlock()
	return n.agree(ctx)
}

// Unsettled counts what is being given, given back, or taken up.
func (n *Networks) Unsettled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.places.busy) + len(n.places.granted) + len(n.places.leaving) + len(n.places.given)
}
