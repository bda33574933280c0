package legion_test

import (
	"strings"
	"testing"
)

// layers are the packages from the ground up. A package imports only from the
// layers below its own, so siblings never know each other.
func layers() [][]string {
	return [][]string{
		{"api"},
		{"swarmpb", "templates", "store", "raftnode/disk", "ca", "agent/exec", "network", "network/bpf", "engine/logfile", "settings", "bundle", "collector", "monitor"},
		{"machine", "raftnode/disktest", "network/dns", "test/traffic"},
		{"network/linux/keeper"},
		{"raftnode", "rpc", "engine", "agent", "machine/local", "machine/ssh", "network/linux", "network/networktest", "agent/exec/exectest", "ca/catest",
			"manager/scheduler", "manager/allocator", "manager/dispatcher", "manager/issuer", "manager/presence", "manager/rotator", "manager/netkeys"},
		{"engine/enginetest", "manager/roles", "manager/orchestrator"}, // whose global services ask the scheduler's constraints
		{"manager/control"}, // which refuses what the loops could not read
		{"engine/containerd", "engine/executor", "dockerapi", "manager"},
		{"node"},
		{"cmd/legion", "sim"},
		{"test"},
	}
}

// programs stand alone: they import nothing of ours.
func programs() []string { return []string{"demo", "engine/enginetest/prog"} }

// reserved says which packages may import what; for prefixes of import paths.
func reserved() map[string][]string {
	kernel := []string{"network/linux", "network/bpf", "machine/local"}
	return map[string][]string{
		"github.com/containerd/containerd": {"engine/containerd"},
		"github.com/vishvananda/netlink":   kernel,
		"github.com/vishvananda/netns":     kernel,
		"github.com/google/nftables":       kernel,
		"github.com/cilium/ebpf":           kernel,
		"go.etcd.io/raft":                  {"raftnode"},
		"google.golang.org/grpc":           {"rpc", "swarmpb", "manager/dispatcher", "manager/issuer", "manager/presence", "agent", "node", "sim", "test"},
		"github.com/moby/moby/client":      {"dockerapi", "cmd/legion", "test"},
		"github.com/docker/cli":            {"cmd/legion"},
		"github.com/moby/swarmkit":         {},
	}
}

// apart are sides of the house that meet only in api, swarmpb and node.
func apart() map[string][]string {
	nodeSide := []string{"agent", "engine", "network", "dockerapi"}
	managerSide := []string{"manager", "raftnode", "store"}
	m := map[string][]string{}
	for _, p := range nodeSide {
		m[p] = managerSide
	}
	for _, p := range managerSide {
		m[p] = nodeSide
	}
	return m
}

func TestLayers(t *testing.T) {
	for _, f := range sources(t) {
		if under(f.pkg, programs()...) {
			for _, path := range f.ours() {
				t.Errorf("%s imports %s: a program that stands alone imports nothing of ours", f.name, path)
			}
			continue
		}
		own := layerOf(f.pkg)
		if own < 0 {
			t.Errorf("%s: package %s has no layer: give it one in layers_test.go", f.name, f.pkg)
			continue
		}
		for _, path := range f.ours() {
			if f.test && strings.HasPrefix(path, f.pkg) {
				continue // an external test of the package itself, or its suite
			}
			if other := layerOf(path); other >= own && (!f.test || other > own) {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports go down", f.name, own, path, other)
			}
		}
	}
}

func TestSidesMeetOnlyInNode(t *testing.T) {
	for _, f := range sources(t) {
		for side, forbidden := range apart() {
			if f.test || !under(f.pkg, side) {
				continue
			}
			for _, path := range f.ours() {
				if under(path, forbidden...) {
					t.Errorf("%s imports %s: %s meets it only through api, swarmpb and node", f.name, path, side)
				}
			}
		}
	}
}

func TestReservedImports(t *testing.T) {
	for _, f := range sources(t) {
		for prefix, allowed := range reserved() {
			for _, path := range f.imports {
				if (path == prefix || strings.HasPrefix(path, prefix+"/")) && !under(f.pkg, allowed...) {
					t.Errorf("%s imports %s: only %v may", f.name, path, allowed)
				}
			}
		}
	}
}

// layerOf returns -1 for a package without one. The longest name counts.
func layerOf(pkg string) int {
	best, layer := "", -1
	for i, l := range layers() {
		for _, p := range l {
			if under(pkg, p) && len(p) > len(best) {
				best, layer = p, i
			}
		}
	}
	return layer
}

// under reports whether the package is one of the roots or below it.
func under(pkg string, roots ...string) bool {
	for _, r := range roots {
		if pkg == r || strings.HasPrefix(pkg, r+"/") {
			return true
		}
	}
	return false
}
