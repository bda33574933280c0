package local

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// cgroupRoot is where hosts mount their cgroups.
const cgroupRoot = "/sys/fs/cgroup"

// facts are what a plan depends on of the host.
type facts struct {
	hierarchies []hierarchy
	resolv      []byte // for the machines' resolv.conf
	path        string // PATH
	proxy       []string
}

// hierarchy is a tree of cgroups that the host has mounted.
type hierarchy struct {
	Dir     string // where it is mounted
	Unified bool   // version 2
	// Options are those of a mount of version 1: its controllers, or a name.
	Options []string
}

// whole reports whether this is cgroup v2 and there is nothing else.
func (h hierarchy) whole() bool { return h.Unified && h.Dir == cgroupRoot }

func readFacts() (facts, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(cgroupRoot))
	if err != nil {
		return facts{}, fmt.Errorf("read mounts: %w", err)
	}
	f := facts{hierarchies: hierarchies(mounts), path: os.Getenv("PATH")}
	if len(f.hierarchies) == 0 {
		return facts{}, fmt.Errorf("no cgroups are mounted at %s: a machine can't be made on this host", cgroupRoot)
	}
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"} {
		if s := os.Getenv(v); s != "" {
			f.proxy = append(f.proxy, v+"="+s)
		}
	}
	f.resolv, _ = os.ReadFile("/etc/resolv.conf") // none: no names, as on the host
	if !usableResolver(f.resolv) {
		// The host's own resolver can't be reached from elsewhere; it tells whom it asks.
		if b, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			f.resolv = b
		}
	}
	return f, nil
}

func hierarchies(mounts []*mountinfo.Info) []hierarchy {
	var all []hierarchy
	seen := map[string]bool{}
	for _, m := range mounts {
		id := fmt.Sprint(m.Major, ":", m.Minor)
		if m.FSType != "cgroup" && m.FSType != "cgroup2" || seen[id] {
			continue
		}
		seen[id] = true
		h := hierarchy{Dir: m.Mountpoint, Unified: m.FSType == "cgroup2"}
		for _, o := range strings.Split(m.VFSOptions, ",") {
			switch {
			case h.Unified, slices.Contains([]string{"", "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "none"}, o):
			case strings.HasPrefix(o, "release_agent="):
			default:
				h.Options = append(h.Options, o)
			}
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b hierarchy) int { return strings.Compare(a.Dir, b.Dir) })
	return all
}

// usableResolver reports whether the file names a server that can be reached
// from another network namespace.
func usableResolver(resolv []byte) bool {
	for s := bufio.NewScanner(bytes.NewReader(resolv)); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil && !a.IsLoopback() {
			return true
		}
	}
	return false
}

// group is the machine's cgroup in a hierarchy.
func (h hierarchy) group(parent, name string) string { return filepath.Join(h.Dir, parent, name) }
