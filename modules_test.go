package legion_test

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/mod/modfile"
)

// modules are those that Legion imports itself, with what for. A module that
// is not here is a decision that nobody wrote down.
func modules() map[string]string {
	return map[string]string{
		"github.com/anishathalye/porcupine":      "tests: linearizability",
		"github.com/cilium/ebpf":                 "the socket load balancer's programs and maps",
		"github.com/containerd/cgroups/v3":       "containers' resource use, on every kind of cgroup",
		"github.com/containerd/containerd/api":   "containerd's messages to its shims",
		"github.com/containerd/errdefs/pkg":      "error classes over gRPC",
		"github.com/containerd/log":              "where containerd's log goes",
		"github.com/containerd/containerd/v2":    "the engine",
		"github.com/containerd/continuity":       "file trees of images",
		"github.com/containerd/errdefs":          "error classes of containerd and of Docker's client",
		"github.com/containerd/platforms":        "which image fits a machine",
		"github.com/containerd/ttrpc":            "the protocol of containerd's shims",
		"github.com/containerd/typeurl/v2":       "containerd's messages",
		"github.com/distribution/reference":      "image names",
		"github.com/docker/cli":                  "the command line",
		"github.com/docker/go-units":             "sizes and ulimits as Docker writes them",
		"github.com/google/go-cmp":               "tests: differences",
		"github.com/google/nftables":             "the packet filter",
		"github.com/klauspost/compress":          "zstd and gzip: bundled programs, layers, snapshots",
		"github.com/mdlayher/netlink":            "the packet filter's socket",
		"github.com/moby/docker-image-spec":      "images' health checks",
		"github.com/moby/go-archive":             "docker cp, image save and load",
		"github.com/moby/moby/api":               "the domain model and the API",
		"github.com/moby/moby/client":            "the API's client, for the command line and tests",
		"github.com/moby/profiles/seccomp":       "Docker's default seccomp profile",
		"github.com/moby/sys/atomicwriter":       "files replaced whole",
		"github.com/moby/sys/mount":              "mount options as Docker writes them",
		"github.com/moby/sys/mountinfo":          "what is mounted",
		"github.com/moby/sys/signal":             "signals by name",
		"github.com/moby/sys/symlink":            "paths inside a container's root",
		"github.com/moby/sys/user":               "a container's users",
		"github.com/opencontainers/go-digest":    "digests",
		"github.com/opencontainers/image-spec":   "images",
		"github.com/opencontainers/runtime-spec": "containers",
		"github.com/prometheus/client_golang":    "metrics",
		"github.com/sirupsen/logrus":             "what Docker's command line logs with",
		"github.com/spf13/cobra":                 "what Docker's command line is built of",
		"github.com/spf13/pflag":                 "the daemon's flags",
		"github.com/vishvananda/netlink":         "links, addresses and routes",
		"github.com/vishvananda/netns":           "network namespaces",
		"go.etcd.io/bbolt":                       "containerd's metadata; the worker's tasks",
		"go.etcd.io/raft/v3":                     "consensus",
		"golang.org/x/crypto":                    "encryption at rest",
		"golang.org/x/mod":                       "tests: this list",
		"golang.org/x/net":                       "which domains are the internet's; tests: DNS messages",
		"golang.org/x/sync":                      "groups of goroutines that end together",
		"golang.org/x/sys":                       "system calls",
		"google.golang.org/grpc":                 "between nodes",
		"google.golang.org/protobuf":             "between nodes",
		"pgregory.net/rapid":                     "tests: properties",
	}
}

func TestModulesAreOnTheList(t *testing.T) {
	file, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", file, nil)
	if err != nil {
		t.Fatal(err)
	}
	var direct []string
	for _, r := range mod.Require {
		if r.Indirect {
			continue
		}
		direct = append(direct, r.Mod.Path)
		if modules()[r.Mod.Path] == "" {
			t.Errorf("go.mod requires %s: say in modules_test.go what for", r.Mod.Path)
		}
	}
	for path := range modules() {
		if !slices.Contains(direct, path) {
			t.Errorf("%s is on the list and not required", path)
		}
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s: then go install of this module fails", r.Old.Path)
	}
}
