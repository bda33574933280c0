package local

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &supervisor{pause: firstPause}
		var got []time.Duration
		for range 9 {
			got = append(got, s.backOff())
			s.started = time.Now()
			time.Sleep(time.Second)
		}
		if got[0] != firstPause || got[1] != 2*firstPause || got[8] != maxPause {
			t.Errorf("pauses %v", got)
		}
		s.started = time.Now()
		time.Sleep(healthy + time.Second)
		if p := s.backOff(); p != firstPause {
			t.Errorf("after a long run: %v", p)
		}
	})
}

func TestHowADaemonEnded(t *testing.T) {
	for status, want := range map[unix.WaitStatus]string{0: "ended with status 0", 2 << 8: "ended with status 2", unix.WaitStatus(syscall.SIGKILL): "was killed by SIGKILL"} {
		if got := describe(status); got != want {
			t.Errorf("%#x: %s, want %s", uint32(status), got, want)
		}
	}
}

func TestMountsThatAreLetGo(t *testing.T) {
	for path, want := range map[string]bool{"/run": true, "/run/user/0": true, "/runs": false, "/": false, "/home": false, "/tmp/x": true, "/sys/fs/cgroup/memory": true} {
		if got := hidden(path, "ext4"); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	if !hidden("/var/x", "nsfs") {
		t.Error("somebody's namespace is held")
	}
}

func TestBindTarget(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("resolv.conf", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if got, err := bindTarget(path); err != nil || got != file {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	if _, err := bindTarget(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("a target that is not there: %v", err)
	}
}

// What a machine asks of cgroups holds on plain folders too.
func TestGroupFolders(t *testing.T) {
	dir := t.TempDir()
	all := []hierarchy{{Dir: dir, Options: []string{"cpuset"}}}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("0-1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := makeGroups(all, "legion-machine", "a"); err != nil {
		t.Fatal(err)
	}
	if err := makeGroups(all, "legion-machine", "a"); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "legion-machine/a/legion/c1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := removeGroups(t.Context(), all, "legion-machine", "a"); err != nil {
		t.Error(err)
	}
	removeParents(all, "legion-machine")
	if _, err := os.Stat(filepath.Join(dir, "legion-machine")); err == nil {
		t.Error("the parent is left")
	}
}

// Of several machines made at once, one may find the parent that another has
// only half filled.
func TestHalfFilledCpuset(t *testing.T) {
	dir := t.TempDir()
	group := filepath.Join(dir, "machines")
	if err := os.Mkdir(group, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, is := range map[string]string{"cpuset.cpus": "0-1\n", "cpuset.mems": "0\n", "machines/cpuset.cpus": "0-1\n", "machines/cpuset.mems": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(is), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := inheritCpuset(group); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(group, "cpuset.mems")); err != nil || string(got) != "0\n" {
		t.Errorf("cpuset.mems is %q, %v", got, err)
	}
}
