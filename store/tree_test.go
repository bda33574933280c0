package store

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// testItem is an id with a number.
type testItem struct {
	idKey
	n int
}

// TestTree has random edits against a map, with snapshots that must not change.
func TestTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type snapshot struct {
			tree tree[idKey, testItem]
			want map[string]int
		}
		var (
			tr    tree[idKey, testItem]
			want  = map[string]int{}
			snaps []snapshot
			space = rapid.SampledFrom([]int{10, 300, 3000}).Draw(t, "keys")
			seq   = rapid.Uint64().Draw(t, "seed")
		)
		next := func(n int) int {
			seq = seq*6364136223846793005 + 1442695040888963407
			return int(seq>>33) % n
		}
		for e := range rapid.IntRange(1, 12).Draw(t, "edits") {
			mode := rapid.IntRange(0, 3).Draw(t, "mode")
			for i := range rapid.SampledFrom([]int{1, 20, 1500}).Draw(t, "steps") {
				id := fmt.Sprintf("%05d", next(space))
				if mode == 3 {
					id = fmt.Sprintf("%05d", i%space)
				}
				before, there := want[id]
				if mode == 0 || mode == 1 && next(2) == 0 {
					if old, ok := tr.remove(edit(e+1), keyOf(id)); ok != there || old.n != before {
						t.Fatalf("remove %s: %v, %v; want %d, %v", id, old, ok, before, there)
					}
					delete(want, id)
					continue
				}
				if old, ok := tr.set(edit(e+1), keyOf(id), testItem{keyOf(id), i}); ok != there || old.n != before {
					t.Fatalf("set %s: %v, %v; want %d, %v", id, old, ok, before, there)
				}
				want[id] = i
			}
			snaps = append(snaps, snapshot{tr, maps.Clone(want)})
		}
		for _, s := range snaps {
			compareTree(t, &s.tree, s.want)
		}
	})
}

func compareTree(t *rapid.T, tr *tree[idKey, testItem], want map[string]int) {
	var got []string
	for it := range tr.all() {
		if want[it.id] != it.n {
			t.Fatalf("%s is %d; want %d", it.id, it.n, want[it.id])
		}
		got = append(got, it.id)
	}
	keys := slices.Sorted(maps.Keys(want))
	if !slices.Equal(got, keys) || tr.size != len(want) {
		t.Fatalf("%d keys, size %d; want %d", len(got), tr.size, len(keys))
	}
	for i := 0; i < len(keys); i += 7 {
		if v, ok := tr.get(keyOf(keys[i])); !ok || v.n != want[keys[i]] {
			t.Fatalf("get %s: %v, %v", keys[i], v, ok)
		}
		got = got[:0]
		for k := range tr.from(keyOf(keys[i] + "a")) {
			got = append(got, k.id)
			if len(got) == 40 {
				break
			}
		}
		if !slices.Equal(got, keys[i+1:][:len(got)]) || len(got) != min(40, len(keys)-i-1) {
			t.Fatalf("from %s: %v", keys[i], got)
		}
	}
}
