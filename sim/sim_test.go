package sim

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestSeeds runs seeds that are always the same; with SIM_SEEDS=n so many others,
// from SIM_SEED on.
func TestSeeds(t *testing.T) {
	first, count := number(t, "SIM_SEED", 1), number(t, "SIM_SEEDS", 30)
	for seed := first; seed < first+count; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			simulate(t, seed)
		})
	}
}

// TestSameSeed: the same seed has the same plan and the same script, whatever the script
// finds, and another seed has others.
func TestSameSeed(t *testing.T) {
	seed := rand.Uint64N(1_000_000)
	first, again := simulate(t, seed), simulate(t, seed)
	if !slices.Equal(first, again) {
		t.Errorf("seed %d did\n%s\nand then\n%s", seed, strings.Join(first, "\n"), strings.Join(again, "\n"))
	}
	if other := simulate(t, seed+1); slices.Equal(first, other) {
		t.Errorf("seeds %d and the next do the same", seed)
	}
}

func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestMain bounds what is simulated at once: disks are in memory.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4))
	os.Exit(m.Run())
}
