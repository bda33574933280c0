package raftnode

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/legion-swarm/legion/raftnode/disktest"
)

// TestEntriesOfAllSizes ends frames everywhere in a block, and begins again in the
// middle of one.
func TestEntriesOfAllSizes(t *testing.T) {
	for name, fs := range map[string]FS{"memory": disktest.New(), "files": osFS{}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			change := func(c *Config) { c.Dir = dir }
			var want []string
			for _, size := range []int{1, 100, diskBlock - 200, diskBlock, 3*diskBlock + 7, 3 << 20, 6 << 20, 10} {
				s := startSolo(t, fs, change)
				for range 3 {
					want = append(want, strings.Repeat("e", size))
					s.propose(t, want[len(want)-1])
					size += 61
				}
				s.stop(t)
			}
			s := startSolo(t, fs, change)
			s.propose(t, "end") // and all before it is applied
			if !slices.Equal(s.list.all(), append(want, "end")) {
				t.Fatal("the log has other entries than those that were written")
			}
		})
	}
}

func TestBlocksAreAligned(t *testing.T) {
	var b []byte
	for _, n := range []int{1, diskBlock, diskBlock + 1, 100_000, 5} {
		b = blocks(b, n)
		if len(b)%diskBlock != 0 || len(b) < n || len(b) >= n+diskBlock || reflect.ValueOf(b).Pointer()%diskBlock != 0 {
			t.Fatalf("%d bytes: %d at %x", n, len(b), reflect.ValueOf(b).Pointer())
		}
	}
}
