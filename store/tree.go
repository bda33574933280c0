package store

import (
	"cmp"
	"encoding/binary"
	"iter"
)

// A tree is a persistent B-tree: to copy the struct is to take a snapshot.
//
// Whoever changes a tree has an edit of its own, a number that is used once.
// Nodes made under that number are changed in place, all others are copied
// first. So a transaction of a thousand writes copies a node once, and
// snapshots taken before or after it never see a half of it.
type tree[K any, T item[K]] struct {
	root *branch[K, T]
	size int
}

// item is what a tree holds; it is ordered by its key, which it has within.
type item[K any] interface{ cmp(K) int }

// edit is a number under which nodes may be changed in place.
type edit uint64

// Nodes but the root are meant to have fewItems at least. To append in order,
// which is usual, makes some with fewer; nothing relies on the bound.
const (
	maxItems = 31
	fewItems = maxItems / 2
)

// branch is a node of a tree. A leaf has no kids.
type branch[K any, T item[K]] struct {
	edit  edit
	n     int
	kids  *[maxItems + 1]*branch[K, T]
	items [maxItems]T
}

// find returns the index of the first item that is not before k.
func (b *branch[K, T]) find(k K) (i int, found bool) {
	lo, hi := 0, b.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := b.items[mid].cmp(k); {
		case c == 0:
			return mid, true
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

func (t *tree[K, T]) get(k K) (it T, ok bool) {
	for b := t.root; b != nil; {
		i, found := b.find(k)
		if found {
			return b.items[i], true
		}
		if b.kids == nil {
			break
		}
		b = b.kids[i]
	}
	return it, false
}

// from iterates over the items that are not before k, in order.
func (t *tree[K, T]) from(k K) iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.root != nil {
			t.root.from(k, yield)
		}
	}
}

func (b *branch[K, T]) from(k K, yield func(T) bool) bool {
	i, found := b.find(k)
	if !found && b.kids != nil && !b.kids[i].from(k, yield) {
		return false
	}
	return b.rest(i, yield)
}

// rest yields the items from i on, and what is between and after them.
func (b *branch[K, T]) rest(i int, yield func(T) bool) bool {
	for ; i < b.n; i++ {
		if !yield(b.items[i]) {
			return false
		}
		if b.kids != nil && !b.kids[i+1].all(yield) {
			return false
		}
	}
	return true
}

// all iterates over all items, in order.
func (t *tree[K, T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.root != nil {
			t.root.all(yield)
		}
	}
}

func (b *branch[K, T]) all(yield func(T) bool) bool {
	if b.kids != nil && !b.kids[0].all(yield) {
		return false
	}
	return b.rest(0, yield)
}

// own returns b, or a copy of it that may be changed under e.
func (b *branch[K, T]) own(e edit) *branch[K, T] {
	if b.edit == e {
		return b
	}
	c := &branch[K, T]{edit: e, n: b.n}
	copy(c.items[:b.n], b.items[:b.n])
	if b.kids != nil {
		c.kids = new([maxItems + 1]*branch[K, T])
		copy(c.kids[:b.n+1], b.kids[:b.n+1])
	}
	return c
}

func (b *branch[K, T]) ownKid(i int, e edit) *branch[K, T] {
	b.kids[i] = b.kids[i].own(e)
	return b.kids[i]
}

// set puts an item in, whose key is k, and returns the one that it replaces.
func (t *tree[K, T]) set(e edit, k K, it T) (old T, replaced bool) {
	if t.root == nil {
		t.root = &branch[K, T]{edit: e}
	}
	b := t.root.own(e)
	t.root = b
	if b.n == maxItems {
		t.root = &branch[K, T]{edit: e, kids: new([maxItems + 1]*branch[K, T])}
		t.root.kids[0] = b
		t.root.split(0, k, e)
		b = t.root
	}
	for {
		i, found := b.find(k)
		if !found && b.kids != nil && b.kids[i].n == maxItems {
			b.split(i, k, e)
			i, found = b.find(k)
		}
		switch {
		case found:
			old, b.items[i] = b.items[i], it
			return old, true
		case b.kids == nil:
			b.insert(i, it)
			t.size++
			return old, false
		}
		b = b.ownKid(i, e)
	}
}

func (b *branch[K, T]) insert(i int, it T) {
	copy(b.items[i+1:b.n+1], b.items[i:b.n])
	b.items[i] = it
	b.n++
}

// split makes two of kid i, which is full, with room for k: where k is the
// last one of all, more are to follow, and the left one is kept nearly full.
func (b *branch[K, T]) split(i int, k K, e edit) {
	left := b.ownKid(i, e)
	at := maxItems / 2
	if left.items[maxItems-1].cmp(k) < 0 {
		at = maxItems - 4
	}
	right := &branch[K, T]{edit: e, n: maxItems - at - 1}
	copy(right.items[:], left.items[at+1:])
	if left.kids != nil {
		right.kids = new([maxItems + 1]*branch[K, T])
		copy(right.kids[:], left.kids[at+1:])
		clear(left.kids[at+1:])
	}
	up := left.items[at]
	clear(left.items[at:])
	left.n = at
	copy(b.kids[i+2:b.n+2], b.kids[i+1:b.n+1])
	b.kids[i+1] = right
	b.insert(i, up)
}

// remove takes an item out and returns it.
func (t *tree[K, T]) remove(e edit, k K) (old T, ok bool) {
	if old, ok = t.get(k); !ok {
		return old, false
	}
	t.root = t.root.own(e)
	t.root.remove(e, k)
	t.size--
	for t.root != nil && t.root.n == 0 {
		if t.root.kids == nil {
			t.root = nil
		} else {
			t.root = t.root.kids[0]
		}
	}
	return old, true
}

// remove takes out an item that is there.
func (b *branch[K, T]) remove(e edit, k K) {
	for {
		i, found := b.find(k)
		switch {
		case b.kids == nil:
			b.cut(i)
			return
		case b.n > 0 && b.kids[i].n <= fewItems:
			b.grow(i, e) // it may have moved
			continue
		case found: // the one before it takes its place
			b.items[i] = b.ownKid(i, e).removeLast(e)
			return
		}
		b = b.ownKid(i, e)
	}
}

func (b *branch[K, T]) removeLast(e edit) T {
	for b.kids != nil {
		if b.n > 0 && b.kids[b.n].n <= fewItems {
			b.grow(b.n, e)
			continue
		}
		b = b.ownKid(b.n, e)
	}
	last := b.items[b.n-1]
	b.cut(b.n - 1)
	return last
}

func (b *branch[K, T]) cut(i int) {
	copy(b.items[i:b.n-1], b.items[i+1:b.n])
	b.n--
	clear(b.items[b.n : b.n+1])
}

// grow gives kid i more items: one of a neighbour's, or all of them.
func (b *branch[K, T]) grow(i int, e edit) {
	switch {
	case i > 0 && b.kids[i-1].n > fewItems:
		b.takeLeft(i, e)
	case i < b.n && b.kids[i+1].n > fewItems:
		b.takeRight(i, e)
	default:
		b.merge(min(i, b.n-1), e)
	}
}

func (b *branch[K, T]) takeLeft(i int, e edit) {
	to, of := b.ownKid(i, e), b.ownKid(i-1, e)
	to.insert(0, b.items[i-1])
	b.items[i-1] = of.items[of.n-1]
	if of.kids != nil {
		copy(to.kids[1:to.n+1], to.kids[:to.n])
		to.kids[0] = of.kids[of.n]
		of.kids[of.n] = nil
	}
	of.cut(of.n - 1)
}

func (b *branch[K, T]) takeRight(i int, e edit) {
	to, of := b.ownKid(i, e), b.ownKid(i+1, e)
	to.insert(to.n, b.items[i])
	b.items[i] = of.items[0]
	if of.kids != nil {
		to.kids[to.n] = of.kids[0]
		copy(of.kids[:of.n], of.kids[1:of.n+1])
		of.kids[of.n] = nil
	}
	of.cut(0)
}

// merge makes one of kids i and i+1, which have few items.
func (b *branch[K, T]) merge(i int, e edit) {
	left, right := b.ownKid(i, e), b.kids[i+1]
	left.items[left.n] = b.items[i]
	copy(left.items[left.n+1:], right.items[:right.n])
	if left.kids != nil {
		copy(left.kids[left.n+1:], right.kids[:right.n+1])
	}
	left.n += right.n + 1
	copy(b.kids[i+1:b.n], b.kids[i+2:b.n+1])
	b.kids[b.n] = nil
	b.cut(i)
}

// idKey is an id, or another string that is not shared by many. Its first
// bytes, which seldom are another's, save looking for the string in memory.
type idKey struct {
	head uint64
	id   string
}

func keyOf(id string) idKey {
	var head [8]byte
	copy(head[:], id)
	return idKey{binary.BigEndian.Uint64(head[:]), id}
}

func (a idKey) cmp(b idKey) int {
	if a.head != b.head {
		return cmp.Compare(a.head, b.head)
	}
	return cmp.Compare(a.id, b.id)
}

// rowItem is an object, other than a task, in the order of ids.
type rowItem struct {
	head   uint64
	object any
}

func (a rowItem) cmp(b idKey) int {
	if a.head != b.head {
		return cmp.Compare(a.head, b.head)
	}
	return cmp.Compare(idOf(a.object), b.id)
}

func (a *specRow) cmp(b idKey) int { return cmp.Compare(a.key, b.id) }

// pairKey is a string that many items may have, and what tells them apart.
type pairKey struct{ of, id string }

func (a pairKey) cmp(b pairKey) int {
	if c := cmp.Compare(a.of, b.of); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}
