package crypt

const (
	wordBits = 64
	words    = 128
	// windowSize is by how many packets one may be overtaken and is still accepted.
	// The word that is being filled takes the place of the oldest.
	windowSize = (words - 1) * wordBits
)

// window remembers which of the last counters have come. The zero value has seen
// none; counters begin with 1.
type window struct {
	top  uint64 // greatest that has come
	bits [words]uint64
}

// fresh reports whether a counter has not come yet, as far as is known.
func (w *window) fresh(c uint64) bool {
	switch {
	case c == 0 || w.top >= windowSize && c <= w.top-windowSize:
		return false
	case c > w.top:
		return true
	}
	return w.bits[c/wordBits%words]&(1<<(c%wordBits)) == 0
}

// note remembers a counter that fresh accepts.
func (w *window) note(c uint64) {
	if c > w.top {
		for i := range min(c/wordBits-w.top/wordBits, words) { // that are begun anew
			w.bits[(c/wordBits-i)%words] = 0
		}
		w.top = c
	}
	w.bits[c/wordBits%words] |= 1 << (c % wordBits)
}
