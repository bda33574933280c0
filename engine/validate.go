package engine

import (
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

const (
	minMemory    = 6 << 20
	minShm       = 0
	maxEnv       = 1 << 20 // bytes of all variables
	maxHostname  = 64      // bytes of it, and of a domain's name: uname(2)
	minCPUPeriod = 1000
	maxCPUPeriod = 1_000_000
)

// validate refuses what can't be, with Docker's words where it has some. c and
// h are complete: the image's config is merged in.
func (e *Engine) validate(c *container.Config, h *container.HostConfig) error {
	for _, check := range []func() error{
		func() error { return validateConfig(c) },
		func() error { return validateHealth(c.Healthcheck) },
		func() error { return validateModes(c, h) },
		func() error { return e.validateResources(&h.Resources) },
		func() error { return validateHost(h) },
		func() error { return e.validateSecurity(h) },
		func() error {
			if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
				return api.Errorf(api.Invalid, "%w", err)
			}
			if h.AutoRemove && !h.RestartPolicy.IsNone() {
				return api.Errorf(api.Invalid, "can't create 'AutoRemove' container with restart policy")
			}
			return nil
		},
		func() error {
			_, err := logfile.Parse(h.LogConfig.Type, h.LogConfig.Config)
			return err
		},
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func validateConfig(c *container.Config) error {
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return api.Errorf(api.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	size := 0
	for _, v := range c.Env {
		if k, _, _ := strings.Cut(v, "="); k == "" {
			return api.Errorf(api.Invalid, "invalid environment variable: %s", v)
		}
		if strings.ContainsRune(v, 0) {
			return api.Errorf(api.Invalid, "invalid environment variable: %q has a NUL", v)
		}
		size += len(v)
	}
	if size > maxEnv {
		return api.Errorf(api.Invalid, "the environment has %d bytes, more than %d: use configs for large values", size, maxEnv)
	}
	if c.StopSignal != "" {
		if _, err := parseSignal(c.StopSignal); err != nil {
			return err
		}
	}
	if c.StopTimeout != nil && *c.StopTimeout < -1 {
		return api.Errorf(api.Invalid, "stop timeout %d is negative; -1 means to wait for ever", *c.StopTimeout)
	}
	for _, f := range []struct{ what, name string }{{"hostname", c.Hostname}, {"domain name", c.Domainname}} {
		if len(f.name) > maxHostname || strings.ContainsFunc(f.name, unicode.IsControl) {
			return api.Errorf(api.Invalid, "invalid %s format: %q has more than the kernel's %d bytes, or control characters", f.what, f.name, maxHostname)
		}
	}
	for _, s := range slices.Concat(c.Entrypoint, c.Cmd) {
		if strings.ContainsRune(s, 0) {
			return api.Errorf(api.Invalid, "the command has a NUL character in %q", s)
		}
	}
	return nil
}

// parseSignal reads a signal's name, with or without SIG, or its number.
func parseSignal(s string) (int, error) {
	n, err := signal.ParseSignal(s)
	if err != nil {
		return 0, api.Errorf(api.Invalid, "Invalid signal: %s", s)
	}
	return int(n), nil
}

func validateHealth(h *HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, f := range []struct {
		name string
		d    time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if f.d != 0 && f.d < container.MinimumDuration {
			return api.Errorf(api.Invalid, "%s in Healthcheck cannot be less than %s", f.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return api.Errorf(api.Invalid, "Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "NONE":
	case "CMD", "CMD-SHELL":
		if len(h.Test) == 1 {
			return api.Errorf(api.Invalid, "Test in Healthcheck names no command after %s", h.Test[0])
		}
	default:
		return api.Errorf(api.Invalid, "Unknown health check type %q in Healthcheck.Test: want NONE, CMD or CMD-SHELL", h.Test[0])
	}
	return nil
}

func validateModes(c *container.Config, h *container.HostConfig) error {
	for _, m := range []struct {
		ok   bool
		what string
		v    string
	}{
		{h.IpcMode.Valid(), "IPC mode", string(h.IpcMode)}, {h.PidMode.Valid(), "PID mode", string(h.PidMode)},
		{h.UTSMode.Valid(), "UTS mode", string(h.UTSMode)}, {h.CgroupnsMode.Valid(), "cgroup namespace mode", string(h.CgroupnsMode)},
		{h.UsernsMode.Valid(), "user namespace mode", string(h.UsernsMode)}, {h.Cgroup == "", "cgroup (there is no --cgroup)", string(h.Cgroup)},
		{h.Isolation.IsDefault(), "isolation", string(h.Isolation)},
	} {
		if !m.ok {
			return api.Errorf(api.Invalid, "invalid %s: %s", m.what, m.v)
		}
	}
	if h.Runtime != "" && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2" {
		return api.Errorf(api.Invalid, "unknown or invalid runtime name: %s (only runc is there)", h.Runtime)
	}
	if h.NetworkMode.IsContainer() {
		switch {
		case h.NetworkMode.ConnectedContainer() == "":
			return api.Errorf(api.Invalid, "invalid container format container:<name|id>")
		case c.Hostname != "" || h.UTSMode.IsHost():
			return api.Errorf(api.Invalid, "conflicting options: hostname and the network mode")
		case len(h.PortBindings) > 0 || h.PublishAllPorts:
			return api.Errorf(api.Invalid, "conflicting options: port publishing and the container type network mode")
		case len(h.DNS) > 0:
			return api.Errorf(api.Invalid, "conflicting options: dns and the network mode")
		case len(h.ExtraHosts) > 0:
			return api.Errorf(api.Invalid, "conflicting options: custom host-to-IP mapping and the network mode")
		}
	}
	if h.UTSMode.IsHost() && c.Hostname != "" {
		return api.Errorf(api.Invalid, "conflicting options: hostname and the UTS mode")
	}
	return nil
}

func (e *Engine) validateResources(r *container.Resources) error {
	bad := func(format string, args ...any) error { return api.Errorf(api.Invalid, format, args...) }
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return bad("Minimum memory limit allowed is 6MB")
	case r.Memory == 0 && r.MemorySwap > 0:
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.MemorySwap < -1:
		return bad("MemorySwap %d: want -1, 0 or a size", r.MemorySwap)
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return bad("Invalid value: %v, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation != 0 && r.MemoryReservation < minMemory:
		return bad("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(runtime.NumCPU())*1e9:
		return bad("range of CPUs is from 0.01 to %.2f, as there are only %d CPUs available", float64(runtime.NumCPU()), runtime.NumCPU())
	case r.NanoCPUs > 0 && (r.CPUPeriod != 0 || r.CPUQuota != 0):
		return bad("Conflicting options: Nano CPUs and CPU Period or Quota cannot both be set.")
	case r.CPUPeriod != 0 && (r.CPUPeriod < minCPUPeriod || r.CPUPeriod > maxCPUPeriod):
		return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < minCPUPeriod:
		return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return bad("CPU shares %d is negative", r.CPUShares)
	case r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return bad("range of blkio weight is from 10 to 1000")
	case r.CPURealtimePeriod != 0 && r.CPURealtimeRuntime > r.CPURealtimePeriod:
		return bad("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	for what, s := range map[string]string{"cpus": r.CpusetCpus, "memory nodes": r.CpusetMems} {
		if err := checkCpuset(s); err != nil {
			return bad("Invalid value %s for cpuset %s: %w", s, what, err)
		}
	}
	seen := map[string]bool{}
	for _, u := range r.Ulimits {
		if u == nil || u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
			return bad("ulimit soft limit must be less than or equal to hard limit: %v", u)
		}
		if _, err := (&units.Ulimit{Name: u.Name, Hard: u.Hard, Soft: u.Soft}).GetRlimit(); err != nil {
			return bad("%w", err)
		}
		if seen[u.Name] {
			return bad("ulimit %s is set twice", u.Name)
		}
		seen[u.Name] = true
	}
	if len(r.DeviceRequests) > 0 {
		return bad("could not select device driver %q with capabilities: %v", r.DeviceRequests[0].Driver, r.DeviceRequests[0].Capabilities)
	}
	return nil
}

// checkCpuset reads a list such as 0-2,4.
func checkCpuset(s string) error {
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		if err != nil {
			return err
		}
		if ranged {
			b, err := strconv.ParseUint(to, 10, 16)
			if err != nil {
				return err
			}
			if b < a {
				return api.Errorf(api.Invalid, "%s is no range", part)
			}
		}
	}
	return nil
}

func validateHost(h *container.HostConfig) error {
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return api.Errorf(api.Invalid, "Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if h.ShmSize < minShm {
		return api.Errorf(api.Invalid, "SHM size can not be less than 0")
	}
	if err := validateNames(h); err != nil {
		return err
	}
	for k := range h.Sysctls {
		namespaced := slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "kernel.domainname"}, k)
		if !namespaced && !strings.HasPrefix(k, "net.") && !strings.HasPrefix(k, "fs.mqueue.") {
			return api.Errorf(api.Invalid, "sysctl '%s' is not allowed: only namespaced kernel parameters (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*) can be set", k)
		}
		if strings.HasPrefix(k, "net.") && (h.NetworkMode.IsHost() || h.NetworkMode.IsContainer()) {
			return api.Errorf(api.Invalid, "sysctl '%s' not allowed in host network namespace", k)
		}
	}
	for p, list := range h.PortBindings {
		if !p.IsValid() || p.Num() == 0 {
			return api.Errorf(api.Invalid, "invalid port specification: %q", p.String())
		}
		for _, b := range list {
			if b.HostPort == "" {
				continue
			}
			if r, err := network.ParsePortRange(b.HostPort); err != nil || r.Start() == 0 && r.End() != 0 {
				return api.Errorf(api.Invalid, "invalid port specification: %q", b.HostPort)
			}
		}
	}
	for k := range h.StorageOpt {
		if k != "size" {
			return api.Errorf(api.Invalid, "storage option %q is not known (there is size)", k)
		}
	}
	if len(h.Links) > 0 && (h.NetworkMode.IsHost() || h.NetworkMode.IsContainer()) {
		kind := "host"
		if h.NetworkMode.IsContainer() {
			kind = "container"
		}
		return api.Errorf(api.Invalid, "conflicting options: %s type networking can't be used with links. This would result in undefined behavior", kind)
	}
	return nil
}
