package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/atomicwriter"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/machine"
)

// fabric joins machines: a bridge in a network namespace of its own, where no
// firewall of the host's has a say, with a port for each machine and one for
// the host, which is the machines' gateway.
type fabric struct {
	dir string // DIR/fabric.json, hosts, lock
	// The host's names for it; they differ with the storage folder.
	pin, link, table string
}

// fabricState is what is kept of it, as fabric.json, under the lock.
type fabricState struct {
	Subnet netip.Prefix
	Hosts  map[string]netip.Addr
	Cuts   []cut `json:",omitempty"`
}

const (
	bridgeName = "fabric"
	hostPort   = "host"
	machineEnd = "eth0"
	stateFile  = "fabric.json"
	hostsFile  = "hosts"
	lockFile   = "lock"
	defaultMTU = 1500
)

// update changes the state under the lock; do may make the kernel's side so.
// The folder goes when no machine is left.
func (f fabric) update(ctx context.Context, purpose string, do func(*fabricState) error) error {
	unlock, err := machine.Lock(ctx, filepath.Join(f.dir, lockFile), purpose)
	if err != nil {
		return err
	}
	defer func() {
		unlock()
		_ = os.Remove(f.dir) // unless something is in it
	}()
	s, err := f.load()
	if err != nil {
		return err
	}
	known := len(s.Hosts)
	if err := do(&s); err != nil {
		return err
	}
	if len(s.Hosts) == 0 && known == 0 {
		return nil // there never was a fabric
	}
	if len(s.Hosts) == 0 {
		return errors.Join(f.remove(s), empty(f.dir))
	}
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(atomicwriter.WriteFile(filepath.Join(f.dir, stateFile), append(b, '\n'), 0o644), f.writeHosts(s))
}

// empty removes what is in the folder but the lock, which the caller holds: also what
// a command left that was killed while it wrote.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != lockFile {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

// load returns an empty state when there is none yet.
func (f fabric) load() (fabricState, error) {
	var s fabricState
	b, err := os.ReadFile(filepath.Join(f.dir, stateFile))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("%s: %w", filepath.Join(f.dir, stateFile), err)
	}
	if s.Hosts == nil {
		s.Hosts = map[string]netip.Addr{}
	}
	return s, nil
}

// writeHosts lets machines find each other by name. The file is written in
// place: it is mounted in all of them.
func (f fabric) writeHosts(s fabricState) error {
	host, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(filepath.Join(f.dir, hostsFile), hostsText(host, s.Hosts), 0o644)
}

func hostsText(host []byte, machines map[string]netip.Addr) []byte {
	var b strings.Builder
	b.Write(host)
	if len(host) > 0 && host[len(host)-1] != '\n' {
		b.WriteByte('\n')
	}
	names := make([]string, 0, len(machines))
	for n := range machines {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		fmt.Fprintf(&b, "%v\t%s\n", machines[n], n)
	}
	return []byte(b.String())
}

// choose chooses the subnet, once.
func (s *fabricState) choose() error {
	if s.Subnet.IsValid() {
		return nil
	}
	taken, err := hostPrefixes()
	if err == nil {
		s.Subnet, err = chooseSubnet(taken)
	}
	return err
}

// ensure makes what is not there of the fabric, as after a reboot.
func (f fabric) ensure(s *fabricState) error {
	ns, err := f.namespace()
	if err != nil {
		return fmt.Errorf("fabric's namespace: %w", err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("fabric's namespace: %w", err)
	}
	defer inside.Close()
	if err := f.ensureLinks(inside, ns, s.Subnet); err != nil {
		return err
	}
	if err := f.filter(ns, drops(s.Cuts, s.Hosts)); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return fmt.Errorf("turn on forwarding, so that machines reach the world: %w", err)
	}
	return f.masquerade(s.Subnet)
}

// namespace opens the fabric's network namespace; it makes one and pins it with
// a mount when there is none.
func (f fabric) namespace() (netns.NsHandle, error) {
	var st unix.Statfs_t
	if unix.Statfs(f.pin, &st) == nil && st.Type == unix.NSFS_MAGIC {
		return netns.GetFromPath(f.pin)
	}
	if err := os.MkdirAll(filepath.Dir(f.pin), 0o700); err != nil {
		return -1, err
	}
	if err := os.WriteFile(f.pin, nil, 0o600); err != nil {
		return -1, err
	}
	made := make(chan error)
	go func() { made <- pinNamespace(f.pin) }()
	if err := <-made; err != nil {
		return -1, err
	}
	return netns.GetFromPath(f.pin)
}

// pinNamespace spoils its thread, which ends with the goroutine.
func pinNamespace(path string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, file := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"} {
		_ = os.WriteFile("/proc/sys/net/bridge/"+file, []byte("0"), 0) // no such module: as good
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount on %s: %w", path, err)
	}
	return nil
}

// remove removes the fabric.
func (f fabric) remove(fabricState) error {
	var errs []error
	if l, err := netlink.LinkByName(f.link); err == nil {
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove %s: %w", f.link, err))
		}
	}
	errs = append(errs, f.removeTable())
	for unix.Unmount(f.pin, unix.MNT_DETACH) == nil {
		continue // until nothing is mounted there
	}
	if err := os.Remove(f.pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	_ = os.Remove(filepath.Dir(f.pin)) // unless something is in it
	return errors.Join(errs...)
}
