package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// TestBadInput: one clear error at the right moment, and nothing half-done
// stays behind.
func TestBadInput(t *testing.T) {
	n := swarmNode(t)
	n.image(t, "app:1", "")
	n.docker(t, "service", "create", "-q", "-d", "--no-resolve-image", "--name", "web", "--replicas", "0", "app:1")
	spec := func(name, more string) string {
		return fmt.Sprintf(`{"Name":%q,"TaskTemplate":{"ContainerSpec":{"Image":"app:1"}}%s}`, name, more)
	}
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		says                     string
	}{
		{"malformed JSON", "POST", "/services/create", `{"Name":`, 400, ""},
		{"no JSON", "POST", "/services/create", ``, 400, ""},
		{"a list for an object", "POST", "/services/create", `[]`, 400, ""},
		{"two values", "POST", "/services/create", spec("a", "") + spec("b", ""), 400, ""},
		{"wrong type", "POST", "/services/create", spec("a", `,"Mode":{"Replicated":{"Replicas":"three"}}`), 400, ""},
		{"negative replicas", "POST", "/services/create", spec("a", `,"Mode":{"Replicated":{"Replicas":-1}}`), 400, ""},
		{"two modes", "POST", "/services/create", spec("a", `,"Mode":{"Replicated":{},"Global":{}}`), 400, "mode"},
		{"no image", "POST", "/services/create", `{"Name":"a","TaskTemplate":{"ContainerSpec":{}}}`, 400, "image"},
		{"bad name", "POST", "/services/create", spec("no good!", ""), 400, "name"},
		{"name too long for DNS", "POST", "/services/create", spec(strings.Repeat("x", 64), ""), 400, "name"},
		{"name taken", "POST", "/services/create", spec("web", ""), 409, "web"},
		{"name taken in another case", "POST", "/services/create", spec("WEB", ""), 409, "WEB"},
		{"unknown operator", "POST", "/services/create", `{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"app:1"},"Placement":{"Constraints":["node.role~manager"]}}}`, 400, "node.role~manager"},
		{"reservation above limit", "POST", "/services/create", `{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"app:1"},"Resources":{"Limits":{"MemoryBytes":-5}}}}`, 400, "memory"},
		{"unknown service", "GET", "/services/nothere", ``, 404, "nothere"},
		{"unknown task", "GET", "/tasks/nothere", ``, 404, "nothere"},
		{"unknown node", "GET", "/nodes/nothere", ``, 404, "nothere"},
		{"unknown container", "GET", "/containers/nothere/json", ``, 404, "nothere"},
		{"unknown image", "GET", "/images/nothere/json", ``, 404, "nothere"},
		{"unknown volume", "GET", "/volumes/nothere", ``, 404, "nothere"},
		{"unknown network", "GET", "/networks/nothere", ``, 404, "nothere"},
		{"unknown page", "GET", "/nothing", ``, 404, ""},
		{"remove what is not there", "DELETE", "/services/nothere", ``, 404, "nothere"},
		{"update without a version", "POST", "/services/web/update", spec("web", ""), 400, "version"},
		{"update with a stale version", "POST", "/services/web/update?version=1", spec("web", ""), 500, "out of sequence"},
		{"unknown filter", "GET", "/services?filters=%7B%22nope%22%3A%5B%22x%22%5D%7D", ``, 400, "nope"},
		{"malformed filter", "GET", "/services?filters=nonsense", ``, 400, ""},
		{"unlocking what is not locked", "POST", "/swarm/unlock", `{"UnlockKey":"x"}`, 409, "swarm is not locked"},
		{"second init", "POST", "/swarm/init", `{"ListenAddr":"127.0.0.1:2377","AdvertiseAddr":"127.0.0.1"}`, 503, "already part of a swarm"},
		{"container without an image", "POST", "/containers/create", `{"Image":"nothere:1"}`, 404, "nothere:1"},
		{"mount source missing", "POST", "/containers/create", `{"Image":"app:1","HostConfig":{"Mounts":[{"Type":"bind","Source":"/no/such","Target":"/x"}]}}`, 400, "/no/such"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := n.api(t, c.method, c.path, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d: %s", status, c.status, body)
			}
			contains(t, message(t, body), c.says)
		})
	}
	t.Run("a body without end", func(t *testing.T) {
		body := `{"Name":"` + strings.Repeat("x", 64<<20) + `"}`
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://legion/v1.44/services/create", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := n.http.Do(r)
		if err != nil {
			return // the server may hang up on it
		}
		defer resp.Body.Close()
		if resp.StatusCode < 400 {
			t.Errorf("status %s", resp.Status)
		}
	})
	t.Run("an ambiguous prefix", func(t *testing.T) {
		for i := range 40 { // with 36 first letters, two of 40 ids share theirs
			n.docker(t, "service", "create", "-q", "-d", "--no-resolve-image", "--name", fmt.Sprint("many", i), "--replicas", "0", "app:1")
		}
		first := map[byte]bool{}
		for _, id := range strings.Fields(n.docker(t, "service", "ls", "-q")) {
			if first[id[0]] {
				status, body := n.api(t, http.MethodGet, "/services/"+id[:1], "")
				if status < 400 || status >= 500 {
					t.Errorf("status %d: %s", status, body)
				}
				contains(t, message(t, body), "ambiguous")
				return
			}
			first[id[0]] = true
		}
	})
	if out := n.docker(t, "service", "ls", "-q", "-f", "name=a"); out != "" {
		t.Errorf("a refused service is there: %s", out)
	}
	if out := n.docker(t, "ps", "-aq"); out != "" {
		t.Errorf("containers of refused requests: %s", out)
	}
	if !n.running() {
		t.Fatal("the daemon ended")
	}
}

// TestBadSwarms: what begins, joins or unlocks no swarm, in Docker's sentences.
func TestBadSwarms(t *testing.T) {
	n := newNode(t)
	n.start(t)
	const (
		token  = `"JoinToken":"SWMTKN-1-3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-1awxwuwd3z9j1z3puu7rcgdbx"`
		listen = `"ListenAddr":"127.0.0.1:2377"`
		notOne = "This node is not a swarm manager. Use"
	)
	for _, c := range []struct {
		name, path, body string
		status           int
		says             string
	}{
		{"init with nothing", "init", `{}`, 400, `invalid ListenAddr ""`},
		{"init, listening at no address", "init", `{"ListenAddr":"nodev0"}`, 400, "listen address must be an IP address or network interface (with optional port number)"},
		{"init, advertising no address", "init", `{` + listen + `,"AdvertiseAddr":"nodev0"}`, 400, "advertise address must be a non-zero IP address or network interface (with optional port number)"},
		{"init, advertising every address", "init", `{` + listen + `,"AdvertiseAddr":"0.0.0.0"}`, 400, "advertise address must be a non-zero IP address"},
		{"init, data at no address", "init", `{` + listen + `,"DataPathAddr":"nodev0"}`, 400, "data path address must be a non-zero IP address or network interface (without a port number)"},
		{"init, networks without room", "init", `{` + listen + `,"DefaultAddrPool":["10.20.0.0/16"],"SubnetSize":30}`, 400, "subnet size is out of range: 30"},
		{"join with nothing", "join", `{}`, 400, `invalid ListenAddr ""`},
		{"join nobody", "join", `{` + listen + `,` + token + `}`, 400, "at least 1 RemoteAddr is required to join"},
		{"join without a token", "join", `{` + listen + `,"RemoteAddrs":["127.0.0.1:1"]}`, 400, "A valid join token is necessary to join this cluster"},
		{"join with no token's like", "join", `{` + listen + `,"RemoteAddrs":["127.0.0.1:1"],"JoinToken":"x"}`, 400, "invalid join token"},
		{"join who is not there", "join", `{` + listen + `,"RemoteAddrs":["127.0.0.1:1"],` + token + `}`, 503, "connection refused"},
		{"unlock", "unlock", `{"UnlockKey":"x"}`, 503, notOne},
		{"unlock with nothing", "unlock", `{}`, 503, notOne},
		{"leave", "leave", ``, 503, "This node is not part of a swarm"},
		{"update", "update?version=1", `{}`, 503, notOne},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body := n.api(t, http.MethodPost, "/swarm/"+c.path, c.body)
			if status != c.status {
				t.Errorf("status %d, want %d: %s", status, c.status, body)
			}
			contains(t, message(t, body), c.says)
			if state := n.docker(t, "info", "-f", "{{.Swarm.LocalNodeState}}"); state != "inactive" {
				t.Errorf("the node is %s", state)
			}
		})
	}
}
