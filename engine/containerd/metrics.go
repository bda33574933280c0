package containerd

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	stats1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	stats2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	docker "github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/legion-swarm/legion/api"
)

// metricsInto translates the shim's cgroup metrics to Docker's.
func metricsInto(st *docker.StatsResponse, a *anypb.Any) error {
	system, err := systemCPU()
	if err != nil {
		return err
	}
	switch name := a.GetTypeUrl(); {
	case strings.HasSuffix(name, "io.containerd.cgroups.v1.Metrics"):
		var m stats1.Metrics
		if err := proto.Unmarshal(a.GetValue(), &m); err != nil {
			return fmt.Errorf("containerd: cgroup metrics: %w", err)
		}
		metricsV1(st, &m)
	case strings.HasSuffix(name, "io.containerd.cgroups.v2.Metrics"):
		var m stats2.Metrics
		if err := proto.Unmarshal(a.GetValue(), &m); err != nil {
			return fmt.Errorf("containerd: cgroup metrics: %w", err)
		}
		metricsV2(st, &m)
	default:
		return api.Errorf(api.Unimplemented, "containerd: cgroup metrics of type %q are not known", name)
	}
	st.CPUStats.SystemUsage = system
	st.CPUStats.OnlineCPUs = uint32(runtime.NumCPU())
	return nil
}

func metricsV1(st *docker.StatsResponse, m *stats1.Metrics) {
	if c := m.CPU; c != nil {
		st.CPUStats.CPUUsage = docker.CPUUsage{
			TotalUsage: c.GetUsage().GetTotal(), PercpuUsage: c.GetUsage().GetPerCPU(),
			UsageInKernelmode: c.GetUsage().GetKernel(), UsageInUsermode: c.GetUsage().GetUser(),
		}
		t := c.GetThrottling()
		st.CPUStats.ThrottlingData = docker.ThrottlingData{Periods: t.GetPeriods(), ThrottledPeriods: t.GetThrottledPeriods(), ThrottledTime: t.GetThrottledTime()}
	}
	if p := m.Pids; p != nil {
		st.PidsStats = docker.PidsStats{Current: p.Current, Limit: p.Limit}
	}
	if mem := m.Memory; mem != nil {
		u := mem.GetUsage()
		st.MemoryStats = docker.MemoryStats{
			Usage: u.GetUsage(), MaxUsage: u.GetMax(), Failcnt: u.GetFailcnt(), Limit: memoryLimit(u.GetLimit()),
			Stats: map[string]uint64{
				"cache": mem.Cache, "rss": mem.RSS, "rss_huge": mem.RSSHuge, "mapped_file": mem.MappedFile,
				"pgpgin": mem.PgPgIn, "pgpgout": mem.PgPgOut, "pgfault": mem.PgFault, "pgmajfault": mem.PgMajFault,
				"inactive_anon": mem.InactiveAnon, "active_anon": mem.ActiveAnon,
				"inactive_file": mem.InactiveFile, "active_file": mem.ActiveFile, "unevictable": mem.Unevictable,
				"hierarchical_memory_limit": mem.HierarchicalMemoryLimit,
				"total_cache":               mem.TotalCache, "total_rss": mem.TotalRSS, "total_rss_huge": mem.TotalRSSHuge,
				"total_mapped_file": mem.TotalMappedFile, "total_pgpgin": mem.TotalPgPgIn, "total_pgpgout": mem.TotalPgPgOut,
				"total_pgfault": mem.TotalPgFault, "total_pgmajfault": mem.TotalPgMajFault,
				"total_inactive_anon": mem.TotalInactiveAnon, "total_active_anon": mem.TotalActiveAnon,
				"total_inactive_file": mem.TotalInactiveFile, "total_active_file": mem.TotalActiveFile,
				"total_unevictable": mem.TotalUnevictable,
			},
		}
	}
	if b := m.Blkio; b != nil {
		st.BlkioStats = docker.BlkioStats{
			IoServiceBytesRecursive: blkioV1(b.IoServiceBytesRecursive), IoServicedRecursive: blkioV1(b.IoServicedRecursive),
			IoQueuedRecursive: blkioV1(b.IoQueuedRecursive), IoServiceTimeRecursive: blkioV1(b.IoServiceTimeRecursive),
			IoWaitTimeRecursive: blkioV1(b.IoWaitTimeRecursive), IoMergedRecursive: blkioV1(b.IoMergedRecursive),
			IoTimeRecursive: blkioV1(b.IoTimeRecursive), SectorsRecursive: blkioV1(b.SectorsRecursive),
		}
	}
}

func blkioV1(in []*stats1.BlkIOEntry) []docker.BlkioStatEntry {
	out := make([]docker.BlkioStatEntry, 0, len(in))
	for _, e := range in {
		out = append(out, docker.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
	}
	return out
}

func metricsV2(st *docker.StatsResponse, m *stats2.Metrics) {
	if c := m.CPU; c != nil {
		st.CPUStats.CPUUsage = docker.CPUUsage{TotalUsage: c.UsageUsec * 1000, UsageInKernelmode: c.SystemUsec * 1000, UsageInUsermode: c.UserUsec * 1000}
		st.CPUStats.ThrottlingData = docker.ThrottlingData{Periods: c.NrPeriods, ThrottledPeriods: c.NrThrottled, ThrottledTime: c.ThrottledUsec * 1000}
	}
	if p := m.Pids; p != nil {
		st.PidsStats = docker.PidsStats{Current: p.Current, Limit: p.Limit}
	}
	if mem := m.Memory; mem != nil {
		st.MemoryStats = docker.MemoryStats{
			Usage: mem.Usage, MaxUsage: mem.MaxUsage, Limit: memoryLimit(mem.UsageLimit), Failcnt: m.GetMemoryEvents().GetOom(),
			Stats: map[string]uint64{
				"anon": mem.Anon, "file": mem.File, "kernel_stack": mem.KernelStack, "slab": mem.Slab, "sock": mem.Sock,
				"shmem": mem.Shmem, "file_mapped": mem.FileMapped, "file_dirty": mem.FileDirty, "file_writeback": mem.FileWriteback,
				"anon_thp": mem.AnonThp, "inactive_anon": mem.InactiveAnon, "active_anon": mem.ActiveAnon,
				"inactive_file": mem.InactiveFile, "active_file": mem.ActiveFile, "unevictable": mem.Unevictable,
				"slab_reclaimable": mem.SlabReclaimable, "slab_unreclaimable": mem.SlabUnreclaimable,
				"pgfault": mem.Pgfault, "pgmajfault": mem.Pgmajfault, "workingset_refault": mem.WorkingsetRefault,
				"workingset_activate": mem.WorkingsetActivate, "workingset_nodereclaim": mem.WorkingsetNodereclaim,
				"pgrefill": mem.Pgrefill, "pgscan": mem.Pgscan, "pgsteal": mem.Pgsteal, "pgactivate": mem.Pgactivate,
				"pgdeactivate": mem.Pgdeactivate, "pglazyfree": mem.Pglazyfree, "pglazyfreed": mem.Pglazyfreed,
				"thp_fault_alloc": mem.ThpFaultAlloc, "thp_collapse_alloc": mem.ThpCollapseAlloc,
			},
		}
	}
	for _, e := range m.GetIo().GetUsage() {
		entry := func(op string, v uint64) docker.BlkioStatEntry {
			return docker.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: op, Value: v}
		}
		b := &st.BlkioStats
		b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, entry("read", e.Rbytes), entry("write", e.Wbytes))
		b.IoServicedRecursive = append(b.IoServicedRecursive, entry("read", e.Rios), entry("write", e.Wios))
	}
}

// memoryLimit is the host's memory where a cgroup has no limit, as docker
// shows it.
func memoryLimit(limit uint64) uint64 {
	total := hostMemory()
	if total != 0 && (limit == 0 || limit > total || limit == math.MaxUint64) {
		return total
	}
	return limit
}

func hostMemory() uint64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, _ := strconv.ParseUint(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// systemCPU is the time that all processors spent, in nanoseconds (proc(5)).
func systemCPU() (uint64, error) {
	const ticksPerSecond = 100 // USER_HZ, part of the kernel's interface
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(first)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("containerd: /proc/stat has no cpu line")
	}
	var ticks uint64
	for _, s := range f[1:8] { // guest time is in user time already
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("containerd: /proc/stat: %w", err)
		}
		ticks += n
	}
	return ticks * (1e9 / ticksPerSecond), nil
}
