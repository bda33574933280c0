package engine

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hostFacts is what does not change while the daemon runs.
type hostFacts struct {
	unified  bool // cgroup v2 only
	hostname string
	kernel   string
	memory   int64
	apparmor bool // and the profile that Docker loads is there
	x32      bool // the kernel has amd64's x32 ABI
	// capabilities that containers can be given.
	capabilities []string
}

func readHost() *hostFacts {
	h := &hostFacts{capabilities: attainable(allCapabilities())}
	var st unix.Statfs_t
	h.unified = unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	h.hostname, _ = os.Hostname()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.kernel = unix.ByteSliceToString(u.Release[:])
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		h.memory = int64(si.Totalram) * int64(si.Unit)
	}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && len(b) > 0 && b[0] == 'Y' {
		h.apparmor = hasProfile(apparmorProfile)
	}
	h.x32 = hasX32()
	return h
}

// hasX32 asks the kernel for a process id over the x32 ABI.
func hasX32() bool {
	const x32 = 1 << 30 // __X32_SYSCALL_BIT
	if runtime.GOARCH != "amd64" {
		return false
	}
	_, _, errno := unix.RawSyscall(x32+unix.SYS_GETPID, 0, 0, 0)
	return errno == 0
}

// apparmorProfile is the profile for containers, where an administrator or
// Docker has loaded it.
const apparmorProfile = "docker-default"

func hasProfile(name string) bool {
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // nothing was written
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), name+" ") {
			return true
		}
	}
	return false
}

// osName is what /etc/os-release calls the host.
func osName() (name, version string) {
	name = "Linux"
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
			if u, err := strconv.Unquote(v); err == nil {
				v = u
			}
			switch k {
			case "PRETTY_NAME":
				name = v
			case "VERSION_ID":
				version = v
			}
		}
		break
	}
	return name, version
}

func owner(info os.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}

// ensureMemory makes dir a place whose files are in memory only, and not swapped
// out where the kernel allows.
func (e *Engine) ensureMemory(dir string) error {
	e.memory.Lock()
	defer e.memory.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// One of its own even where dir is on a tmpfs: that one may be swapped out.
	err := unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0700,noswap")
	if errors.Is(err, unix.EINVAL) { // Linux before 6.4
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=0700")
	}
	if err != nil {
		return fmt.Errorf("engine: secrets must not be on a disk, and no tmpfs can be mounted on %s: %w", dir, err)
	}
	return nil
}

// dropMemory unmounts a place made by ensureMemory when nothing is in it.
func (e *Engine) dropMemory(dir string) {
	e.memory.Lock()
	defer e.memory.Unlock()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		return
	}
	if mounted, err := mountinfo.Mounted(dir); err == nil && mounted {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EBUSY) {
			e.cfg.Log.Warn("a tmpfs could not be unmounted", "path", dir, "error", err)
			return
		}
	}
	_ = os.Remove(dir)
}

// sharedMemory makes a /dev/shm that other containers can share.
func (e *Engine) sharedMemory(id string, size int64) (path string, undo func(), err error) {
	path = filepath.Join(e.cfg.ExecRoot, "shm", id)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", nil, err
	}
	if mounted, err := mountinfo.Mounted(path); err != nil {
		return "", nil, err
	} else if !mounted {
		if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size="+strconv.FormatInt(size, 10)); err != nil {
			return "", nil, fmt.Errorf("engine: container %s: mount its shared memory: %w", id, err)
		}
	}
	return path, func() { dropShared(path) }, nil
}

func dropShared(path string) {
	_ = unix.Unmount(path, unix.MNT_DETACH)
	_ = os.Remove(path)
}
