package sim

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
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
