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
type tree[K key[K], V any] struct {
	root *branch[K, V]
	size int
}

// key orders the items of a tree.
type key[K any] interface{ cmp(K) int }

// edit is a number under which nodes may be changed in place.
type edit uint64

// Nodes but the root are meant to have fewItems at least. To append in order,
// which is usual, makes some with fewer; nothing relies on the bound.
const (
	maxItems = 31
	fewItems = maxItems / 2
)

// branch is a node of a tree. A leaf has no kids.
type branch[K key[K], V any] struct {
	edit  edit
	n     int
	kids  *[maxItems + 1]*branch[K, V]
	items [maxItems]item[K, V]
}

// item has its value first: a value of no size at the end would take a word.
type item[K, V any] struct {
	val V
	key K
}

// find returns the index of the first item that is not before k.
func (b *branch[K, V]) find(k K) (i int, found bool) {
	lo, hi := 0, b.n
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		switch c := b.items[mid].key.cmp(k); {
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

func (t *tree[K, V]) get(k K) (v V, ok bool) {
	for b := t.root; b != nil; {
		i, found := b.find(k)
		if found {
			return b.items[i].val, true
		}
		if b.kids == nil {
			break
		}
		b = b.kids[i]
	}
	return v, false
}

// from iterates over the items that are not before k, in order.
func (t *tree[K, V]) from(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.root != nil {
			t.root.from(k, yield)
		}
	}
}

func (b *branch[K, V]) from(k K, yield func(K, V) bool) bool {
	i, found := b.find(k)
	if !found && b.kids != nil && !b.kids[i].from(k, yield) {
		return false
	}
	return b.rest(i, yield)
}

// rest yields the items from i on, and what is between and after them.
func (b *branch[K, V]) rest(i int, yield func(K, V) bool) bool {
	for ; i < b.n; i++ {
		if !yield(b.items[i].key, b.items[i].val) {
			return false
		}
		if b.kids != nil && !b.kids[i+1].all(yield) {
			return false
		}
	}
	return true
}

// all iterates over all items, in order.
func (t *tree[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if t.root != nil {
			t.root.all(yield)
		}
	}
}

func (b *branch[K, V]) all(yield func(K, V) bool) bool {
	if b.kids != nil && !b.kids[0].all(yield) {
		return false
	}
	return b.rest(0, yield)
}

// own returns b, or a copy of it that may be changed under e.
func (b *branch[K, V]) own(e edit) *branch[K, V] {
	if b.edit == e {
		return b
	}
	c := &branch[K, V]{edit: e, n: b.n}
	copy(c.items[:b.n], b.items[:b.n])
	if b.kids != nil {
		c.kids = new([maxItems + 1]*branch[K, V])
		copy(c.kids[:b.n+1], b.kids[:b.n+1])
	}
	return c
}

func (b *branch[K, V]) ownKid(i int, e edit) *branch[K, V] {
	b.kids[i] = b.kids[i].own(e)
	return b.kids[i]
}

// set puts an item in, and returns the value that it replaces. The key of an
// item that is there stays, so that equal keys share memory.
func (t *tree[K, V]) set(e edit, k K, v V) (old V, replaced bool) {
	if t.root == nil {
		t.root = &branch[K, V]{edit: e}
	}
	b := t.root.own(e)
	t.root = b
	if b.n == maxItems {
		t.root = &branch[K, V]{edit: e, kids: new([maxItems + 1]*branch[K, V])}
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
			old = b.items[i].val
			b.items[i].val = v
			return old, true
		case b.kids == nil:
			b.insert(i, item[K, V]{v, k})
			t.size++
			return old, false
		}
		b = b.ownKid(i, e)
	}
}

func (b *branch[K, V]) insert(i int, it item[K, V]) {
	copy(b.items[i+1:b.n+1], b.items[i:b.n])
	b.items[i] = it
	b.n++
}

// split makes two of kid i, which is full, with room for k: where k is the
// last one of all, more are to follow, and the left one is kept nearly full.
func (b *branch[K, V]) split(i int, k K, e edit) {
	left := b.ownKid(i, e)
	at := maxItems / 2
	if left.items[maxItems-1].key.cmp(k) < 0 {
		at = maxItems - 4
	}
	right := &branch[K, V]{edit: e, n: maxItems - at - 1}
	copy(right.items[:], left.items[at+1:])
	if left.kids != nil {
		right.kids = new([maxItems + 1]*branch[K, V])
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

// remove takes an item out and returns its value.
func (t *tree[K, V]) remove(e edit, k K) (old V, ok bool) {
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
func (b *branch[K, V]) remove(e edit, k K) {
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

func (b *branch[K, V]) removeLast(e edit) item[K, V] {
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

func (b *branch[K, V]) cut(i int) {
	copy(b.items[i:b.n-1], b.items[i+1:b.n])
	b.n--
	b.items[b.n] = item[K, V]{}
}

// grow gives kid i more items: one of a neighbour's, or all of them.
func (b *branch[K, V]) grow(i int, e edit) {
	switch {
	case i > 0 && b.kids[i-1].n > fewItems:
		b.takeLeft(i, e)
	case i < b.n && b.kids[i+1].n > fewItems:
		b.takeRight(i, e)
	default:
		b.merge(min(i, b.n-1), e)
	}
}

func (b *branch[K, V]) takeLeft(i int, e edit) {
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

func (b *branch[K, V]) takeRight(i int, e edit) {
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
func (b *branch[K, V]) merge(i int, e edit) {
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
	if len(id) >= 8 {
		return idKey{uint64(id[0])<<56 | uint64(id[1])<<48 | uint64(id[2])<<40 | uint64(id[3])<<32 | uint64(id[4])<<24 | uint64(id[5])<<16 | uint64(id[6])<<8 | uint64(id[7]), id}
	}
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

// pairKey is a string that many items may have, and what tells them apart.
type pairKey struct{ of, id string }

func (a pairKey) cmp(b pairKey) int {
	if c := cmp.Compare(a.of, b.of); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}

// slotKey is a task in its service's order.
type slotKey struct {
	service string
	slot    int
	id      string
}

func (a slotKey) cmp(b slotKey) int {
	if c := cmp.Compare(a.service, b.service); c != 0 {
		return c
	}
	if a.slot != b.slot {
		return cmp.Compare(a.slot, b.slot)
	}
	return cmp.Compare(a.id, b.id)
}
