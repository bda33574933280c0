package linux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// world is a host in a namespace of the test's own, with an outside joined to
// it: 10.99.0.1 is the host, 10.99.0.2 the outside, which routes nothing back.
type world struct {
	t             testing.TB
	dir           string
	host, outside string // paths
	group         string // cgroup of the test
	balancer      string // for Config.Balancer
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{t: t, dir: runDir(t)}
	w.host, w.outside = w.namespace("host"), w.namespace("outside")
	w.in(w.host, func() {
		w.ok(netlink.LinkSetUp(w.link("lo")))
		out, err := os.Open(w.outside)
		w.ok(err)
		defer out.Close()
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = "up0", 1400
		w.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "up0", PeerNamespace: netlink.NsFd(out.Fd())}))
		w.address("up0", "10.99.0.1/24", "fd99::1/64")
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Gw: net.IPv4(10, 99, 0, 2)}))
		w.ok(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("::/0")), Gw: net.ParseIP("fd99::2")}))
	})
	w.in(w.outside, func() {
		w.ok(netlink.LinkSetUp(w.link("lo")))
		w.address("up0", "10.99.0.2/24", "fd99::2/64")
	})
	return w
}

// runDir is a folder in memory, as /run is: on disk, files come and go slowly.
func runDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) link(name string) netlink.Link {
	w.t.Helper()
	l, err := netlink.LinkByName(name)
	w.ok(err)
	return l
}

func (w *world) address(device string, prefixes ...string) {
	w.t.Helper()
	l := w.link(device)
	w.ok(writeSysctl("/proc/sys/net/ipv6/conf/"+device+"/accept_dad", "0")) // no second of waiting
	for _, p := range prefixes {
		w.ok(netlink.AddrAdd(l, address(netip.MustParsePrefix(p))))
	}
	w.ok(netlink.LinkSetUp(l))
}

// namespace makes a namespace that goes with the test.
func (w *world) namespace(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	w.thread(func() {
		w.ok(unix.Unshare(unix.CLONE_NEWNET))
		w.ok(bindNamespace(path))
	})
	w.t.Cleanup(func() {
		if err := unbindNamespace(path); err != nil {
			w.t.Error(err)
		}
	})
	return path
}

// thread runs f on a thread that is put back afterwards. f may fail the test.
func (w *world) thread(f func()) {
	w.t.Helper()
	runtime.LockOSThread()
	before, err := netns.Get()
	w.ok(err)
	defer func() {
		if err := netns.Set(before); err != nil {
			panic(fmt.Sprintf("the thread is lost in a namespace: %v", err))
		}
		before.Close()
		runtime.UnlockOSThread()
	}()
	f()
}

// in runs f in a namespace.
func (w *world) in(path string, f func()) {
	w.t.Helper()
	w.thread(func() {
		h, err := netns.GetFromPath(path)
		w.ok(err)
		defer h.Close()
		w.ok(netns.Set(h))
		f()
	})
}

// plane returns a data plane on the world's host.
func (w *world) plane(owner string) *Plane {
	w.t.Helper()
	return w.planeOn(w.host, "netns"+owner, owner)
}

// planeOn returns a data plane on a namespace that plays a host.
func (w *world) planeOn(host, dir, owner string) *Plane {
	w.t.Helper()
	p, err := New(Config{
		Dir: filepath.Join(w.dir, dir), Owner: owner, HostNetNS: host, BPF: filepath.Join(w.dir, "bpf"+dir),
		Cgroup: w.cgroup(), Balancer: w.balancer, Keeper: keeperCommand(), KeeperSocket: filepath.Join(w.dir, dir+".keeper"),
		Log: slog.New(slog.DiscardHandler),
	})
	w.ok(err)
	w.cleanPlane(p)
	return p
}

// kill ends a data plane as the kernel does for a killed daemon.
func (w *world) kill(p *Plane) {
	w.t.Helper()
	p.sockets.close()
	p.meshSockets.close()
	w.ok(p.keeper.Close())
}

// cleanPlane has what a data plane made go with the test.
func (w *world) cleanPlane(p *Plane) {
	w.t.Helper()
	w.t.Cleanup(func() {
		if err := p.Set(context.WithoutCancel(w.t.Context()), &network.Config{}); err != nil {
			w.t.Error(err)
		}
		entries, err := os.ReadDir(p.dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Error(err)
		}
		for _, e := range entries {
			if err := unbindNamespace(p.Path(e.Name())); err != nil {
				w.t.Error(err)
			}
		}
		if err := p.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

// count returns how many entries a folder has.
func count(w *world, dir string) int {
	w.t.Helper()
	l, err := os.ReadDir(dir)
	w.ok(err)
	return len(l)
}
