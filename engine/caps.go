package engine

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

// defaultCapabilities is what Docker gives a container.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// allCapabilities lists them by their number, capabilities(7).
func allCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
		"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
		"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
		"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
		"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
		"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

const anyCapability = "ALL"

func normalCapabilities(list []string) ([]string, error) {
	out := make([]string, 0, len(list))
	for _, c := range list {
		n := strings.ToUpper(c)
		if n != anyCapability {
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !slices.Contains(allCapabilities(), n) {
				return nil, api.Errorf(api.Invalid, "unknown capability: %q", c)
			}
		}
		out = append(out, n)
	}
	return out, nil
}

// capabilities returns what a container has of those that are possible, in the
// order of their numbers.
func capabilities(h *container.HostConfig, possible []string) ([]string, error) {
	add, err := normalCapabilities(h.CapAdd)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "invalid CapAdd: %w", err)
	}
	drop, err := normalCapabilities(h.CapDrop)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "invalid CapDrop: %w", err)
	}
	if h.Privileged {
		return slices.Clone(possible), nil
	}
	var list []string
	for _, c := range possible {
		has := slices.Contains(defaultCapabilities(), c)
		if slices.Contains(drop, anyCapability) {
			has = false
		}
		if slices.Contains(add, anyCapability) {
			has = true
		}
		if slices.Contains(drop, c) {
			has = false
		}
		if slices.Contains(add, c) {
			has = true
		}
		if has {
			list = append(list, c)
		}
	}
	return list, nil
}
