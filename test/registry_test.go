package test

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// registry is the reference registry on loopback, for one user.
type registry struct {
	addr, user, password string
	stop                 func()
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{addr: "127.0.0.1:" + freePort(t), user: "joe", password: "conspicuous"}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "registry"), ".")
	build.Dir = root + "/tools/registry"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the registry: %v: %s", err, out)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(r.password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %[1]s/data}}\n"+
		"http: {addr: %[2]q}\nauth: {htpasswd: {realm: test, path: %[1]s/htpasswd}}\n", dir, r.addr)
	for name, text := range map[string]string{"htpasswd": r.user + ":" + string(hash) + "\n", "config.yml": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(filepath.Join(dir, "registry"), filepath.Join(dir, "config.yml"))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	r.stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(r.stop)
	await(t, "the registry listens", func() error {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return r
}

// login gives the stock client a password for the registry, whether or not that
// is right.
func (n *node) login(t *testing.T, r *registry, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(r.user + ":" + password))
	if err := os.MkdirAll(n.dir+"/client", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.dir+"/client/config.json", fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.addr, auth), 0o600); err != nil {
		t.Fatal(err)
	}
}

// push gives the registry an image that this node then forgets.
func (n *node) push(t *testing.T, ref, config string) {
	t.Helper()
	n.image(t, ref, config)
	n.docker(t, "push", "-q", ref)
	n.docker(t, "image", "rm", ref)
}

// worker is another node of the swarm of n, on loopback as well.
func (n *node) worker(t *testing.T) *node {
	t.Helper()
	w := startedNode(t)
	token := n.docker(t, "swarm", "join-token", "-q", "worker")
	w.docker(t, "swarm", "join", "--token", token, "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:"+freePort(t), "127.0.0.1:2377")
	return w
}

// pinned is the image that a service says it runs.
func (n *node) pinned(t *testing.T, service string) string {
	t.Helper()
	return n.docker(t, "service", "inspect", "-f", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", service)
}

// Nodes pull from a registry with the login that a service has, which nobody gets
// to see; and a task says why its image can't be had.
func TestImagesFromARegistry(t *testing.T) {
	n := swarmNode(t)
	w, r := n.worker(t), newRegistry(t)
	app := r.addr + "/team/app"
	n.login(t, r, r.password)
	n.push(t, app+":1", "")
	n.push(t, app+":2", `"Labels":{"version":"2"}`)
	each := []string{"--replicas", "2", "--replicas-max-per-node", "1", "--restart-delay", "1s"}
	create := func(name string, args ...string) {
		t.Helper()
		n.docker(t, append(append([]string{"service", "create", "-q", "--name", name}, each...), args...)...)
	}
	running := func(label string) {
		t.Helper()
		for _, m := range []*node{n, w} {
			ids := m.awaitContainers(t, "web", 1)
			if got := m.inspect(t, ids[0], "{{.Config.Labels.version}}"); got != label {
				t.Errorf("version %q runs, want %q", got, label)
			}
		}
	}

	create("none", "-d", "--no-resolve-image", app+":1", "sleep")
	n.awaitTask(t, "none", "{{.CurrentState}} {{.Error}}", "Rejected", "denied by the registry "+r.addr, "has no login", "--with-registry-auth")
	for _, line := range n.tasks(t, "none", "{{.Error}}") {
		if strings.Contains(line, "No such image") {
			t.Errorf("what was denied is called missing: %s", line)
		}
	}
	n.docker(t, "service", "rm", "none")

	create("web", "--with-registry-auth", app+":1", "sleep")
	running("<no value>")
	first := n.pinned(t, "web")
	contains(t, first, app+":1@sha256:")
	n.docker(t, "service", "update", "-q", "--no-resolve-image", "--image", app+":2", "web")
	running("2") // the login stays
	if got := n.pinned(t, "web"); got != app+":2" {
		t.Errorf("image %s, though it was not to be resolved", got)
	}
	n.docker(t, "service", "update", "-d", "-q", "--with-registry-auth", "--image", app+":1", "web")
	if got := n.pinned(t, "web"); got != first {
		t.Errorf("image %s, want %s", got, first)
	}
	n.unseen(t, w, r.password, base64.StdEncoding.EncodeToString([]byte(r.user+":"+r.password)), `"username":"joe"`)

	n.docker(t, "service", "create", "-d", "-q", "--name", "missing", "--no-resolve-image", "--with-registry-auth", app+":nope", "sleep")
	n.awaitTask(t, "missing", "{{.CurrentState}} {{.Error}}", "Rejected", "No such image: "+app+":nope")
	n.login(t, r, "wrong")
	n.docker(t, "service", "create", "-d", "-q", "--name", "wrong", "--no-resolve-image", "--with-registry-auth", app+":nope", "sleep")
	n.awaitTask(t, "wrong", "{{.CurrentState}} {{.Error}}", "Rejected", "denied by the registry "+r.addr, "in spite of the service's login")
	r.stop()
	n.docker(t, "service", "create", "-d", "-q", "--name", "down", "--no-resolve-image", app+":nope", "sleep")
	n.awaitTask(t, "down", "{{.CurrentState}} {{.Error}}", "Rejected", "cannot reach the registry "+r.addr)
}

// unseen checks that secret texts are in no answer of the API and in no file of
// the swarm, also not as the header in which they came.
func (n *node) unseen(t *testing.T, w *node, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		for shift := range 3 { // base64 of what it stands in has it in one of three ways
			secrets = append(secrets, base64.StdEncoding.EncodeToString([]byte(strings.Repeat(" ", shift) + s))[(shift*8+5)/6:len(s)/3*4-4])
		}
	}
	for _, path := range []string{"/services", "/tasks", "/services/web", "/nodes", "/events?since=1&until=2"} {
		if code, body := n.api(t, http.MethodGet, path, ""); code != http.StatusOK {
			t.Errorf("%s: %d %s", path, code, body)
		} else {
			for _, s := range secrets {
				if strings.Contains(body, s) {
					t.Errorf("%s shows %q", path, s)
				}
			}
		}
	}
	for _, m := range []*node{n, w} {
		if out, err := exec.Command("grep", append([]string{"-rlF", m.data + "/swarm"}, patterns(secrets)...)...).Output(); err == nil {
			t.Errorf("in the clear: %s", out)
		}
	}
}

func patterns(texts []string) (args []string) {
	for _, s := range texts {
		args = append(args, "-e", s)
	}
	return args
}
