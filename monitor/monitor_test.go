package monitor

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The monitor is the thread that wakes up again and again while all that the program
// does is to compute.
func TestFind(t *testing.T) {
	thread, err := find()
	if err != nil {
		t.Fatal(err)
	}
	if thread == os.Getpid() {
		t.Fatal("the process's own thread")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for before := slept(t, thread); slept(t, thread) < before+10; {
	}
}

// slept is how often a thread went to sleep.
func slept(t *testing.T, thread int) (n int) {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/status", thread))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "voluntary_ctxt_switches:"); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

func TestRelax(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const slack = time.Millisecond
	if err := Relax(slack); err != nil {
		t.Fatal(err)
	}
	thread, err := find()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(slackOf(thread))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(b)); got != fmt.Sprint(slack.Nanoseconds()) {
		t.Errorf("%s ns", got)
	}
	own, err := os.ReadFile(slackOf(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if string(own) == string(b) {
		t.Error("other threads have it, too")
	}
}
