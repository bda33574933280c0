package test

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestDemo runs what make up and make down run. The demo's front end answers on
// every machine and on 127.0.0.1, with a count of redis and a page of nginx, and
// nothing is left of it in the end.
func TestDemo(t *testing.T) {
	m := newMachines(t)
	script := func(name string) string {
		t.Helper()
		cmd := exec.Command(root + "/scripts/" + name)
		cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s\n%s", name, err, out, &stderr)
		}
		return string(out)
	}
	for _, again := range []bool{false, true} {
		began := time.Now()
		out := script("up")
		t.Logf("up (again: %v) took %v", again, time.Since(began).Round(time.Millisecond))
		urls := regexp.MustCompile(`\$ curl .* (http://\S+)`).FindAllStringSubmatch(out, -1)
		if len(urls) != 4 || urls[3][1] != "http://127.0.0.1:8080/" {
			t.Fatalf("addresses %q in:\n%s", urls, out)
		}
		for _, url := range urls {
			page, err := exec.Command("curl", "-fsS", "-m", "5", url[1]).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", url[1], err, page)
			}
			for _, w := range []string{"I am demo_front.", " on ", "counted by redis", "http://nginx/ says: nginx at your service"} {
				contains(t, string(page), w)
			}
		}
		if i := strings.LastIndex(out, "Try next"); i < 0 || !strings.Contains(out[i:], "make down") {
			t.Errorf("it does not say what to try: %s", out)
		}
	}
	contains(t, script("down"), "the demo is gone: manager1 worker1 worker2")
	contains(t, script("down"), "nothing to remove")
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || strings.Contains(string(out), "legion_demo") {
		t.Errorf("packet filter: %s, %v", out, err)
	}
	m.traceless(t)
}
