package engine

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
)

// attainable leaves out capabilities that this process can't give away: those
// that are newer than the kernel, or were taken from it.
func attainable(list []string) []string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return list
	}
	for line := range strings.Lines(string(b)) {
		v, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		if err != nil {
			return list
		}
		var out []string
		for i, c := range list {
			if bits&(1<<i) != 0 {
				out = append(out, c)
			}
		}
		return out
	}
	return list
}

// security is what a container's security options say.
type security struct {
	noNewPrivileges bool
	seccomp         string // "", "unconfined", or a profile
	apparmor        string
	unmask          bool // systempaths=unconfined
}

func (e *Engine) parseSecurity(h *container.HostConfig) (security, error) {
	s := security{noNewPrivileges: e.cfg.NoNewPrivileges, seccomp: e.cfg.Seccomp}
	for _, o := range h.SecurityOpt {
		if o == "no-new-privileges" {
			s.noNewPrivileges = true
			continue
		}
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":")
		}
		if !ok {
			return s, api.Errorf(api.Invalid, "invalid --security-opt 1: %q", o)
		}
		switch k {
		case "label": // means something with SELinux only
		case "apparmor":
			s.apparmor = v
		case "seccomp":
			s.seccomp = v
		case "no-new-privileges":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, api.Errorf(api.Invalid, "invalid --security-opt 2: %q", o)
			}
			s.noNewPrivileges = b
		case "systempaths":
			if v != "unconfined" {
				return s, api.Errorf(api.Invalid, "invalid --security-opt 2: %q", o)
			}
			s.unmask = true
		case "writable-cgroups":
			return s, api.Errorf(api.Unimplemented, "security option writable-cgroups is not served")
		default:
			return s, api.Errorf(api.Invalid, "invalid --security-opt 2: %q", o)
		}
	}
	if s.seccomp == "builtin" || s.seccomp == "default" {
		s.seccomp = ""
	}
	return s, nil
}

func (e *Engine) validateSecurity(h *container.HostConfig) error {
	s, err := e.parseSecurity(h)
	if err != nil {
		return err
	}
	if s.seccomp != "" && s.seccomp != "unconfined" && !json.Valid([]byte(s.seccomp)) {
		return api.Errorf(api.Invalid, "the seccomp profile is not JSON (give its content, not its path)")
	}
	if s.apparmor != "" && s.apparmor != "unconfined" && !hasProfile(s.apparmor) {
		return api.Errorf(api.Invalid, "apparmor profile %q is not loaded on this host", s.apparmor)
	}
	_, err = capabilities(h, e.host.capabilities)
	return err
}

// seccompCache keeps what the built-in profile comes to for each set of
// capabilities. There are few sets; beyond the bound it starts anew.
type seccompCache struct {
	x32 bool // the kernel has this ABI
	mu  sync.Mutex
	all map[string]*specs.LinuxSeccomp
}

const maxSeccomp = 64

func newSeccompCache(x32 bool) *seccompCache {
	return &seccompCache{x32: x32, all: make(map[string]*specs.LinuxSeccomp)}
}

// builtin returns Docker's profile for a spec. The result is shared: it must
// not be changed.
func (s *seccompCache) builtin(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	key := strings.Join(spec.Process.Capabilities.Bounding, ",")
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.all[key]; p != nil {
		return p, nil
	}
	p, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, err
	}
	if !s.x32 {
		// What the kernel does not have needs no rules: compiling them is a tenth of what a container's start costs.
		p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	if len(s.all) >= maxSeccomp {
		clear(s.all)
	}
	s.all[key] = p
	return p, nil
}

func (e *Engine) applySecurity(spec *specs.Spec, h *container.HostConfig) error {
	s, err := e.parseSecurity(h)
	if err != nil {
		return err
	}
	spec.Process.NoNewPrivileges = s.noNewPrivileges
	if s.unmask {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	switch {
	case s.apparmor == "unconfined" || s.apparmor == "" && (h.Privileged || !e.host.apparmor):
	case s.apparmor != "":
		spec.Process.ApparmorProfile = s.apparmor
	default:
		spec.Process.ApparmorProfile = apparmorProfile
	}
	switch {
	case s.seccomp == "unconfined" || h.Privileged && !hasSeccomp(h.SecurityOpt):
		return nil
	case s.seccomp == "":
		spec.Linux.Seccomp, err = e.seccomp.builtin(spec)
	default:
		spec.Linux.Seccomp, err = seccomp.LoadProfile(s.seccomp, spec)
	}
	if err != nil {
		return api.Errorf(api.Invalid, "seccomp profile: %w", err)
	}
	return nil
}

func hasSeccomp(opts []string) bool {
	return slices.ContainsFunc(opts, func(o string) bool { return strings.HasPrefix(o, "seccomp") })
}

// maskedPaths and readonlyPaths are Docker's: what of /proc and /sys a
// container must not see, or not change.
func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
