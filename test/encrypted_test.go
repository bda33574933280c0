package test

import (
	"strings"
	"testing"
)

// TestEncryptedOverlay has tasks on two machines reach each other through a network
// that is encrypted, also after its keys were replaced and a daemon was killed, and
// looks for what would be clear text.
func TestEncryptedOverlay(t *testing.T) {
	s := newSwarm(t, []string{"one"}, []string{"two"})
	one, two := s.nodes["one"], s.nodes["two"]
	one.docker(t, "network", "create", "-d", "overlay", "--opt", "encrypted", "o1")
	one.docker(t, "service", "create", "-q", "--no-resolve-image", "--name", "g", "--mode", "global", "--network", "o1", "--entrypoint", "/web", "app:1")
	const addr = "{{.NetworkSettings.Networks.o1.IPAddress}}"
	id1, id2 := one.awaitContainers(t, "g", 1)[0], two.awaitContainers(t, "g", 1)[0]
	inside := func(machine string) func(args ...string) (string, error) {
		return func(args ...string) (string, error) {
			o := s.try("ssh", machine, strings.Join(args, " "))
			return o.stdout + o.stderr, o.err
		}
	}
	both := func(what string) {
		t.Helper()
		await(t, "two's answer "+what, func() error {
			return one.reaches(t, inside("one"), id1, two.inspect(t, id2, addr), id2)
		})
		await(t, "one's answer "+what, func() error {
			return two.reaches(t, inside("two"), id2, one.inspect(t, id1, addr), id1)
		})
	}
	both("at first")
	contains(t, one.legion(t, "network", "rotate-keys"), "being replaced")
	for range 5 {
		both("as keys are replaced")
	}
	for _, m := range []string{"one", "two"} {
		out, err := inside(m)("cat", "/proc/net/udp")
		if err != nil || !strings.Contains(out, ":12B6 ") {
			t.Errorf("nothing listens at port 4790 on %s: %v\n%s", m, err, out)
		}
		out, err = inside(m)("sh", "-c", `'for f in $(find /run -path "*/netns/overlay-*"); do nsenter --net=$f cat /proc/net/dev; done'`)
		if err != nil || !strings.Contains(out, "crypt0:") {
			t.Errorf("there is no way for encrypted frames on %s: %v\n%s", m, err, out)
		}
	}
	one.docker(t, "service", "rm", "g")
	two.awaitContainers(t, "g", 0)
	one.docker(t, "network", "rm", "o1")
}
