package containerd

import (
	"encoding/json"
	"strings"
	"testing"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	docker "github.com/moby/moby/api/types/container"
)

// A container without a transfer has empty lists, not null, as with Docker: what
// shows statistics walks them.
func TestNoTransfersYet(t *testing.T) {
	var st docker.StatsResponse
	metricsV1(&st, &stats1.Metrics{Blkio: &stats1.BlkIOStat{IoServiceBytesRecursive: []*stats1.BlkIOEntry{{Op: "Read", Major: 8, Value: 7}}}})
	b, err := json.Marshal(st.BlkioStats)
	if err != nil || strings.Contains(string(b), "null") || !strings.Contains(string(b), `"io_service_bytes_recursive":[{"major":8,"minor":0,"op":"Read","value":7}]`) {
		t.Errorf("%s, %v", b, err)
	}
}
