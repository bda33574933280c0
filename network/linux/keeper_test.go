package linux

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network/linux/keeper"
)

// keeperCommand runs this program as a keeper, see TestMain.
func keeperCommand() []string { return []string{"/proc/self/exe", keeper.Command} }

// keeperOf returns the process that holds what is not the daemon's; 0: there is none.
func (w *world) keeperOf(p *Plane) int {
	w.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	w.ok(err)
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil || !strings.HasSuffix(string(b), "\x00"+p.keeperSocket()+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		w.ok(err)
		return pid
	}
	return 0
}

// keeperSocket is where the test's data plane has its keeper.
func (p *Plane) keeperSocket() string { return p.dir + ".keeper" }

// killKeeper kills it, and returns when the data plane knows.
func (w *world) killKeeper(p *Plane) {
	w.t.Helper()
	pid := w.keeperOf(p)
	if pid == 0 {
		w.t.Fatal("there is no keeper")
	}
	_, before := p.KeeperStatus()
	w.ok(unix.Kill(pid, unix.SIGKILL))
	for _, now := p.KeeperStatus(); now == before; _, now = p.KeeperStatus() {
		<-time.After(time.Millisecond)
	}
}
