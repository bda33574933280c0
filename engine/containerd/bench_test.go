package containerd

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

// BenchmarkUpDown creates and starts 51 containers in parallel, and removes
// them again. Reported: containers started a second, and what the shims take for
// each container in KiB of PSS.
func BenchmarkUpDown(b *testing.B) {
	const n = 51
	r := newRig(b, nil)
	image := r.load(b)
	up := func(k int) error {
		id := fmt.Sprint("c", k)
		st, err := r.Create(b.Context(), engine.RuntimeContainer{ID: id, Image: image, Spec: enginetest.Spec("sleep")})
		if err != nil {
			return err
		}
		go func() { _, _ = io.Copy(io.Discard, st.Stdout) }()
		go func() { _, _ = io.Copy(io.Discard, st.Stderr) }()
		_, err = r.Start(b.Context(), id)
		return err
	}
	down := func(k int) error {
		if err := r.Delete(b.Context(), fmt.Sprint("c", k)); err != nil {
			return err
		}
		return r.RemoveRootfs(b.Context(), fmt.Sprint("c", k))
	}
	each := func(f func(int) error) {
		var wg sync.WaitGroup
		for k := range n {
			wg.Go(func() {
				if err := f(k); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	pss := 0
	for b.Loop() {
		each(up)
		b.StopTimer()
		pss = 0
		for _, p := range processesOf(r.cfg.State) {
			pss += pssOf(b, strings.Fields(p)[0])
		}
		each(down)
		b.StartTimer()
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "containers/s")
	b.ReportMetric(float64(pss)/n, "KiB/container")
}

func pssOf(b *testing.B, pid string) (kib int) {
	b.Helper()
	text, err := os.ReadFile("/proc/" + pid + "/smaps_rollup")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if _, err := fmt.Sscanf(line, "Pss: %d", &kib); err == nil {
			return kib
		}
	}
	return 0
}
