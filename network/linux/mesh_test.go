package linux

import (
	"fmt"
	"testing"

	"github.com/legion-swarm/legion/network"
)

// The server sees the client's own address, wherever that can be.
func TestMeshClientAddress(t *testing.T) {
	for _, alone := range []bool{false, true} {
		t.Run(fmt.Sprintf("alone %v", alone), func(t *testing.T) {
			w := meshWorldOf(t, alone)
			w.set()
			w.serveTasks()
			w.cases(t)
		})
	}
}

// cases is the table of who asks where, and what the server then sees.
func (w *meshWorld) cases(t *testing.T) {
	t.Helper()
	h1, h2, h3, out := w.hosts["h1"], w.hosts["h2"], w.hosts["h3"], w.hosts["out"]
	for _, c := range []struct{ what, from, to, seen string }{
		{"outside, node with the task", out, "10.99.0.1:8001", "10.99.0.100"},
		{"outside, node with another task", out, "10.99.0.1:8002", "10.99.0.100"},
		{"outside, node without a task", out, "10.99.0.3:8001", "10.99.0.100"},
		{"outside, IPv6, node with the task", out, "[fd99::1]:8001", "fd99::100"},
		{"outside, IPv6, node without a task", out, "[fd99::3]:8002", "fd99::100"},
		{"the node by its own address, local task", h1, "10.99.0.1:8001", "10.99.0.1"},
		{"the node by its own address, remote task", h1, "10.99.0.1:8002", "10.99.0.1"},
		{"the node by its own address, no task here", h3, "10.99.0.3:8002", "10.99.0.3"},
		{"the node by its own address, IPv6", h1, "[fd99::1]:8002", "fd99::1"},
		{"another node, task there", h2, "10.99.0.1:8001", "10.99.0.2"},
		{"another node, task here", h2, "10.99.0.1:8002", "10.99.0.2"},
		{"another node, task here, IPv6", h2, "[fd99::1]:8002", "fd99::2"},
		{"another node, task elsewhere", h2, "10.99.0.3:8001", "10.99.0.2"},
		{"loopback, local task", h1, "127.0.0.1:8001", "10.0.0.11"},
		{"loopback, remote task", h1, "127.0.0.1:8002", "10.0.0.11"},
		{"loopback, another of its addresses", h1, "127.0.0.9:8001", "10.0.0.11"},
		{"loopback IPv6, relayed", h1, "[::1]:8001", "10.0.0.11"},
		{"loopback IPv6, relayed to a remote task", h3, "[::1]:8002", "10.0.0.13"},
		{"a bridge's address", h1, "172.17.0.1:8002", "10.0.0.11"},
		{"container, its own node", w.planes[1].Path("c"), "10.99.0.1:8001", "10.0.0.11"},
		{"container, its own node, remote task", w.planes[1].Path("c"), "10.99.0.1:8002", "10.0.0.11"},
		{"container, by its gateway", w.planes[1].Path("c"), "172.17.0.1:8002", "10.0.0.11"},
		{"container, another node", w.planes[1].Path("c"), "10.99.0.3:8001", "10.99.0.1"},
		{"container, IPv6", w.planes[1].Path("c"), "[fd99::1]:8001", "fd0a::b"},
		{"task, its own service, itself", w.task(1), "10.99.0.1:8001", "10.0.0.11"},
		{"task, by its gateway, itself", w.task(1), "172.18.0.1:8001", "10.0.0.11"},
		{"task, the other", w.task(1), "10.99.0.1:8002", "10.0.0.11"},
		{"task, by another node, itself", w.task(1), "10.99.0.3:8001", "10.99.0.1"},
		{"a task's address, from the node", h1, "10.0.0.21:80", "error"},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			t.Run(fmt.Sprint(c.what, " ", proto), func(t *testing.T) {
				seen, name := w.query(c.from, proto, w.meant(c.to))
				if seen != w.meant(c.seen) {
					t.Errorf("the server saw %s, not %s (%s)", seen, w.meant(c.seen), name)
				}
			})
		}
	}
}

// The same over an encrypted ingress network.
func TestMeshEncrypted(t *testing.T) {
	w := newMeshWorld(t)
	for i := 1; i <= 3; i++ {
		o := *w.config[i].Overlays["ing"]
		o.Encrypted = true
		w.config[i].Overlays["ing"] = &o
		w.config[i].Keys = network.Keys{All: []network.Key{key(1)}, Send: 1}
	}
	w.set()
	w.serveTasks()
	w.cases(t)
}
