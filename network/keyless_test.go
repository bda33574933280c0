package network_test

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/network"
)

// log keeps what is logged.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns the levels of what was logged of keys since the last call.
func (l *log) take() (levels []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, "no keys") {
			level, _, _ := strings.Cut(line[strings.Index(line, "level=")+len("level="):], " ")
			levels = append(levels, level)
		}
	}
	l.buf.Reset()
	return levels
}

// Keys of an encrypted network come a moment later than the network: that is no
// error. It is one if they stay away.
func TestKeysOnTheirWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said log
		n := &swarmNode{node: newNode(t, func(o *network.Options) {
			o.Log = slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelInfo}))
		})}
		n.run()
		defer func() { n.stop() }()
		encrypted := overlayNetwork("e", "e", "10.0.9.0/24")
		encrypted.DriverState.Options[api.OptionEncrypted] = ""
		release, err := n.Use([]*api.Network{encrypted})
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		n.told(api.NetworkUpdate{ID: "e", Whole: true, Put: endpoints("t2 10.0.9.3 192.0.2.2 s1 Web.2.t2 serving")})
		if _, err := n.Join(t.Context(), "c1", map[string]*dnet.EndpointSettings{"e": given("10.0.9.5")}, nil); err != nil {
			t.Fatal(err)
		}
		expect := func(when, want string) {
			t.Helper()
			synctest.Wait()
			if got := strings.Join(said.take(), " "); got != want {
				t.Errorf("%s: %q, not %q", when, got, want)
			}
		}
		expect("at first", "")
		time.Sleep(59 * time.Second)
		expect("after a minute", "")
		time.Sleep(2 * time.Minute)
		expect("after two more", "ERROR")
		time.Sleep(time.Minute)
		expect("still", "ERROR")
		keys := &api.OverlayKeys{Keys: []api.OverlayKey{{ID: 1}}, Send: 1}
		n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{DataPort: 4789, Keys: keys})
		time.Sleep(5 * time.Minute)
		expect("with keys", "")
		n.Told(netip.MustParseAddr("192.0.2.1"), &api.OverlayUpdate{DataPort: 4789, Keys: &api.OverlayKeys{}})
		time.Sleep(30 * time.Second)
		expect("taken away just now", "")
		n.killed("c1") // Keep is content
		time.Sleep(59 * time.Second)
		expect("after a restart", "")
	})
}
