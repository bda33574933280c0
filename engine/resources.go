package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/api"
)

const nanoPeriod = 100_000 // µs

// resources translates a container's limits. h is nil in updates.
func resources(r *container.Resources, h *container.HostConfig) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	mem := &specs.LinuxMemory{}
	set := func(dst **int64, v int64) {
		if v != 0 {
			*dst = &v
		}
	}
	set(&mem.Limit, r.Memory)
	set(&mem.Reservation, r.MemoryReservation)
	set(&mem.Swap, r.MemorySwap)
	if s := r.MemorySwappiness; s != nil && *s >= 0 {
		v := uint64(*s)
		mem.Swappiness = &v
	}
	if r.OomKillDisable != nil && *r.OomKillDisable {
		mem.DisableOOMKiller = r.OomKillDisable
	}
	if *mem != (specs.LinuxMemory{}) {
		out.Memory = mem
	}
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares != 0 {
		v := uint64(r.CPUShares)
		cpu.Shares = &v
	}
	if r.NanoCPUs > 0 {
		period, quota := uint64(nanoPeriod), r.NanoCPUs*nanoPeriod/1e9
		cpu.Period, cpu.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		v := uint64(r.CPUPeriod)
		cpu.Period = &v
	}
	set(&cpu.Quota, r.CPUQuota)
	if r.NanoCPUs > 0 {
		quota := r.NanoCPUs * nanoPeriod / 1e9
		cpu.Quota = &quota
	}
	if r.CPURealtimePeriod != 0 {
		v := uint64(r.CPURealtimePeriod)
		cpu.RealtimePeriod = &v
	}
	set(&cpu.RealtimeRuntime, r.CPURealtimeRuntime)
	out.CPU = cpu
	if p := r.PidsLimit; p != nil {
		v := *p
		if v <= 0 {
			v = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &v}
	}
	var err error
	out.BlockIO, err = blockIO(r)
	return out, err
}

func blockIO(r *container.Resources) (*specs.LinuxBlockIO, error) {
	b := &specs.LinuxBlockIO{}
	if r.BlkioWeight != 0 {
		w := r.BlkioWeight
		b.Weight = &w
	}
	for _, d := range r.BlkioWeightDevice {
		major, minor, err := deviceNumber(d.Path)
		if err != nil {
			return nil, err
		}
		w := d.Weight
		x := specs.LinuxWeightDevice{Weight: &w}
		x.Major, x.Minor = major, minor
		b.WeightDevice = append(b.WeightDevice, x)
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice}, {r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice}, {r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			major, minor, err := deviceNumber(d.Path)
			if err != nil {
				return nil, err
			}
			x := specs.LinuxThrottleDevice{Rate: d.Rate}
			x.Major, x.Minor = major, minor
			*t.to = append(*t.to, x)
		}
	}
	return b, nil
}

func deviceNumber(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, api.Errorf(api.Invalid, "device %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK && st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return 0, 0, api.Errorf(api.Invalid, "%s is not a device", path)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// devices gives a container its devices and the right to use them.
func devices(spec *specs.Spec, h *container.HostConfig) error {
	res := spec.Linux.Resources
	if h.Privileged {
		res.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		found, err := hostDevices("/dev", "/dev", "rwm")
		if err != nil {
			return err
		}
		spec.Linux.Devices = found
		return nil
	}
	res.Devices = defaultDevices()
	for _, d := range h.Devices {
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		if strings.Trim(access, "rwm") != "" {
			return api.Errorf(api.Invalid, "device %s: access %q: want some of r, w, m", d.PathOnHost, access)
		}
		target := d.PathInContainer
		if target == "" {
			target = d.PathOnHost
		}
		found, err := hostDevices(d.PathOnHost, target, access)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return api.Errorf(api.Invalid, "error gathering device information while adding custom device %q: not a device node", d.PathOnHost)
		}
		for i := range found {
			spec.Linux.Devices = append(spec.Linux.Devices, found[i])
			res.Devices = append(res.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: found[i].Type, Major: &found[i].Major, Minor: &found[i].Minor, Access: access})
		}
	}
	for _, rule := range h.DeviceCgroupRules {
		r, err := deviceRule(rule)
		if err != nil {
			return err
		}
		res.Devices = append(res.Devices, r)
	}
	return nil
}

// defaultDevices denies all but what every Unix program may use.
func defaultDevices() []specs.LinuxDeviceCgroup {
	n := func(v int64) *int64 { return &v }
	list := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range [][2]int64{{1, 5}, {1, 3}, {1, 9}, {1, 8}, {5, 0}, {5, 1}} {
		list = append(list, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(d[0]), Minor: n(d[1]), Access: "rwm"})
	}
	return append(list, specs.LinuxDeviceCgroup{Allow: false, Type: "c", Major: n(10), Minor: n(229), Access: "rwm"})
}

func deviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	m := regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`).FindStringSubmatch(s)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, api.Errorf(api.Invalid, "invalid device cgroup rule format: '%s'", s)
	}
	number := func(s string) *int64 {
		v := int64(-1)
		if s != "*" {
			v, _ = strconv.ParseInt(s, 10, 64)
		}
		return &v
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Major: number(m[2]), Minor: number(m[3]), Access: m[4]}, nil
}

// hostDevices lists a device, or those below a folder.
func hostDevices(path, target, access string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "error gathering device information while adding custom device %q: %w", path, err)
	}
	var list []specs.LinuxDevice
	err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			switch p {
			case "/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.lxd-mounts", "/dev/.udev":
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&os.ModeDevice == 0 || p == "/dev/console" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return nil //nolint:nilerr // it vanished
		}
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		mode, uid, gid := os.FileMode(st.Mode&^unix.S_IFMT), st.Uid, st.Gid
		list = append(list, specs.LinuxDevice{
			Path: target + strings.TrimPrefix(p, real), Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &uid, GID: &gid,
		})
		return nil
	})
	return list, err
}
