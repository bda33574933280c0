package allocator

import "slices"

// waiters are what there was no address for, by network, in the order in which
// they came. What becomes free is offered to as many as it can serve, so that
// thousands that wait for a full network cost nothing.
type waiters struct {
	lines map[string]*line
	of    map[string]string // network by who waits
}

// line is a queue. Those that left it early are passed over when they are due.
type line struct {
	order []string
	live  int
}

func newWaiters() *waiters {
	return &waiters{lines: map[string]*line{}, of: map[string]string{}}
}

// add has id wait for a network, at the end of its line unless it is in it.
func (w *waiters) add(network, id string) {
	if w.of[id] == network {
		return
	}
	w.remove(id)
	l := w.lines[network]
	if l == nil {
		l = &line{}
		w.lines[network] = l
	}
	if len(l.order) > 2*l.live+minGap {
		w.tidy(network, l)
	}
	l.order = append(l.order, id)
	l.live++
	w.of[id] = network
}

// minGap is how many that have left a line stay in it at least.
const minGap = 64

// tidy takes those that have left out of a line.
func (w *waiters) tidy(network string, l *line) {
	seen := make(map[string]bool, l.live)
	l.order = slices.DeleteFunc(l.order, func(id string) bool {
		gone := w.of[id] != network || seen[id]
		seen[id] = true
		return gone
	})
}

func (w *waiters) remove(id string) {
	network, ok := w.of[id]
	if !ok {
		return
	}
	delete(w.of, id)
	l := w.lines[network]
	if l.live--; l.live == 0 {
		delete(w.lines, network)
	}
}

// due takes out those that can be served: free says how many a network can.
func (w *waiters) due(free func(network string) uint64) []string {
	var ids []string
	for network, l := range w.lines {
		n := free(network)
		for n > 0 && len(l.order) > 0 {
			id := l.order[0]
			l.order = l.order[1:]
			if w.of[id] == network {
				w.remove(id)
				ids = append(ids, id)
				n--
			}
		}
	}
	return ids
}

// all takes everybody out.
func (w *waiters) all() []string {
	var ids []string
	for id := range w.of {
		ids = append(ids, id)
	}
	clear(w.lines)
	clear(w.of)
	return ids
}
