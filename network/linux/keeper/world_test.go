package keeper

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// world is two hosts in namespaces of the test's own, joined by a link:
// 10.99.0.1 and fd99::1, 10.99.0.2 and fd99::2.
type world struct {
	t             testing.TB
	host, outside *os.File
}

// needRoot skips a test where it can't be run.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	w := &world{t: t}
	w.host, w.outside = w.namespace(), w.namespace()
	w.in(w.host, func() {
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = "up0", 1400
		w.ok(netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "up0", PeerNamespace: netlink.NsFd(w.outside.Fd())}))
	})
	for i, ns := range []*os.File{w.host, w.outside} {
		w.in(ns, func() {
			for _, name := range []string{"lo", "up0"} {
				l, err := netlink.LinkByName(name)
				w.ok(err)
				for _, a := range []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x99, 15: byte(i + 1)}), 64)} {
					if name == "up0" {
						n := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
						r := &netlink.Addr{IPNet: n}
						if a.Addr().Is6() {
							r.Flags = unix.IFA_F_NODAD
						}
						w.ok(netlink.AddrAdd(l, r))
					}
				}
				w.ok(netlink.LinkSetUp(l))
			}
		})
	}
	return w
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// namespace makes one that goes with the test.
func (w *world) namespace() *os.File {
	w.t.Helper()
	var f *os.File
	w.thread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			f, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	w.t.Cleanup(func() { w.ok(f.Close()) })
	return f
}

// thread runs f on a thread that ends with it.
func (w *world) thread(f func() error) {
	w.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	w.ok(<-done)
}

// in runs f on a thread in a namespace. f does not fail the test but by ok.
func (w *world) in(ns *os.File, f func()) {
	w.t.Helper()
	runtime.LockOSThread()
	before, err := os.Open("/proc/thread-self/ns/net")
	w.ok(err)
	defer func() {
		if err := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		_ = before.Close()
		runtime.UnlockOSThread()
	}()
	w.ok(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET))
	f()
}
