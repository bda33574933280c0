package containerd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/crypto/bcrypt"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/engine/enginetest"
)

// startRegistry runs the reference registry on loopback and returns its
// address; with a password for the user "joe" if one is given.
func startRegistry(t *testing.T, password string) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "registry"), ".")
	build.Dir = "../../tools/registry"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the registry: %v: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	config := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %q}\n", dir, addr)
	if password != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "htpasswd"), []byte("joe:"+string(hash)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		config += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s/htpasswd}}\n", dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "registry"), filepath.Join(dir, "config.yml"))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	waitFor(t, "the registry to listen", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return addr
}

// front is a reverse proxy before a registry that tests put faults in.
func front(t *testing.T, backend string, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	u := &url.URL{Scheme: "http", Host: backend}
	s := httptest.NewServer(wrap(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func (r *rig) put(t *testing.T, images ...enginetest.Image) {
	t.Helper()
	if err := r.Images().Load(t.Context(), bytes.NewReader(enginetest.DockerArchive(t, images...)), nil, nil); err != nil {
		t.Fatal(err)
	}
}

func text(s string, tags ...string) enginetest.Image {
	return enginetest.Image{Tags: tags, Created: "2026-01-02T03:04:05Z", Layers: []map[string][]byte{{"base": []byte("base")}, {s: []byte(strings.Repeat(s, 100000))}}}
}

func (r *rig) drop(t *testing.T, name string) {
	t.Helper()
	if _, err := r.Images().Remove(t.Context(), name, engine.ImageRemoveOptions{Force: true}, nil); err != nil {
		t.Fatal(err)
	}
}

// statuses collects the words of a progress stream.
func statuses(list *[]string) engine.Progress {
	var mu sync.Mutex
	return func(m jsonstream.Message) {
		mu.Lock()
		defer mu.Unlock()
		s := m.Status
		if m.Aux != nil {
			s = "aux " + string(*m.Aux)
		}
		if !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
}

func wantError(t *testing.T, what string, err error, class api.Class, words string) {
	t.Helper()
	if !api.Is(err, class) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v (class %d); want class %d and %q", what, err, api.ClassOf(err), class, words)
	}
}

func TestPushPull(t *testing.T) {
	r, addr := newRig(t, nil), startRegistry(t, "")
	i, ctx := r.Images(), t.Context()
	name := addr + "/team/app:1"
	r.put(t, text("app", name))
	id := mustResolve(t, r, name)
	var said []string
	if err := i.Push(ctx, name, engine.PullOptions{}, statuses(&said)); err != nil {
		t.Fatal(err)
	}
	if said[0] != "The push refers to repository ["+addr+"/team/app]" || !slices.Contains(said, "Pushed") || !slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "1: digest: "+id+" size: ") }) ||
		!strings.Contains(said[len(said)-1], `"Digest":"`+id+`"`) {
		t.Errorf("push said %q", said)
	}
	r.drop(t, name)
	if n, err := i.Usage(ctx); n != 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	said = nil
	if err := i.Pull(ctx, name, engine.PullOptions{}, statuses(&said)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"Pulling from team/app", "Pulling fs layer", "Download complete", "Pull complete", "Digest: " + id, "Status: Downloaded newer image for " + name} {
		if !slices.Contains(said, s) {
			t.Errorf("pull did not say %q: %q", s, said)
		}
	}
	if mustResolve(t, r, name) != id {
		t.Error("another image came back")
	}
	said = nil
	if err := i.Pull(ctx, name, engine.PullOptions{}, statuses(&said)); err != nil || !slices.Contains(said, "Status: Image is up to date for "+name) {
		t.Errorf("again: %q, %v", said, err)
	}
	r.drop(t, name)
	byDigest := addr + "/team/app@" + id
	if err := i.Pull(ctx, byDigest, engine.PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	list, err := i.List(ctx, engine.ImageListOptions{})
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 0 || !slices.Equal(list[0].RepoDigests, []string{byDigest}) || mustResolve(t, r, byDigest) != id {
		t.Errorf("by digest: %+v, %v", list, err)
	}
	d, err := i.Distribution(ctx, name, nil)
	if err != nil || d.Descriptor.Digest.String() != id || len(d.Platforms) != 1 || d.Platforms[0].OS != "linux" {
		t.Errorf("distribution: %+v, %v", d, err)
	}
}

func mustResolve(t *testing.T, r *rig, name string) string {
	t.Helper()
	img, err := r.Images().Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return img.ID
}

func TestPullErrors(t *testing.T) {
	r, addr := newRig(t, nil), startRegistry(t, "")
	i, ctx := r.Images(), t.Context()
	r.put(t, text("app", addr+"/app:1"))
	if err := i.Push(ctx, addr+"/app:1", engine.PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	wantError(t, "tag", i.Pull(ctx, addr+"/app:other", engine.PullOptions{}, nil), api.NotFound, "manifest for "+addr+"/app:other not found: manifest unknown")
	wantError(t, "repository", i.Pull(ctx, addr+"/other", engine.PullOptions{}, nil), api.NotFound, "not found")
	wantError(t, "digest", i.Pull(ctx, addr+"/app@sha256:"+strings.Repeat("0", 64), engine.PullOptions{}, nil), api.NotFound, "not found")
	wantError(t, "reference", i.Pull(ctx, "A b", engine.PullOptions{}, nil), api.Invalid, "invalid reference format")
	wantError(t, "platform", i.Pull(ctx, addr+"/app:1", engine.PullOptions{Platform: &ocispec.Platform{OS: "plan9", Architecture: "mips"}}, nil), api.NotFound, "no matching manifest for plan9/mips")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	wantError(t, "nobody there", i.Pull(ctx, l.Addr().String()+"/app:1", engine.PullOptions{}, nil), api.Unavailable, "connection refused")
	_, err = i.Distribution(ctx, addr+"/app:other", nil)
	wantError(t, "distribution", err, api.NotFound, "not found")
}

func TestPassword(t *testing.T) {
	r, addr := newRig(t, nil), startRegistry(t, "secret")
	i, ctx, name := r.Images(), t.Context(), addr+"/private/app:1"
	r.put(t, text("app", name))
	joe := &registry.AuthConfig{Username: "joe", Password: "secret"}
	bad := &registry.AuthConfig{Username: "joe", Password: "guess"}
	wantError(t, "push", i.Push(ctx, name, engine.PullOptions{}, nil), api.PermissionDenied, "push access denied for "+addr+"/private/app")
	if err := i.Push(ctx, name, engine.PullOptions{Auth: joe}, nil); err != nil {
		t.Fatal(err)
	}
	r.drop(t, name)
	wantError(t, "no password", i.Pull(ctx, name, engine.PullOptions{}, nil), api.PermissionDenied, "pull access denied for "+addr+"/private/app, repository does not exist or may require 'docker login'")
	if err := i.Pull(ctx, name, engine.PullOptions{Auth: bad}, nil); !api.Is(err, api.Unauthenticated) && !api.Is(err, api.PermissionDenied) {
		t.Errorf("wrong password: %v", err)
	}
	if err := i.Pull(ctx, name, engine.PullOptions{Auth: joe}, nil); err != nil {
		t.Error(err)
	}
	if _, err := i.Distribution(ctx, name, joe); err != nil {
		t.Error(err)
	}
}

// tokens is a registry that wants bearer tokens, and hands them out to who
// knows the password.
func tokens(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/token" {
			user, pass, _ := q.BasicAuth()
			if q.Method == http.MethodPost {
				user, pass = q.FormValue("username"), q.FormValue("password")
				if q.FormValue("refresh_token") == "long-lived" {
					user, pass = "joe", "secret"
				}
			}
			if user != "joe" || pass != "secret" {
				http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
				return
			}
			_, _ = fmt.Fprint(w, `{"token":"t0","access_token":"t0","expires_in":300}`)
			return
		}
		if q.Header.Get("Authorization") != "Bearer t0" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:app:pull,push"`, q.Host))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, q)
	})
}

func TestToken(t *testing.T) {
	r := newRig(t, nil)
	addr := front(t, startRegistry(t, ""), tokens)
	i, ctx, name := r.Images(), t.Context(), addr+"/app:1"
	r.put(t, text("app", name))
	if err := i.Push(ctx, name, engine.PullOptions{Auth: &registry.AuthConfig{Username: "joe", Password: "secret"}}, nil); err != nil {
		t.Fatal(err)
	}
	for what, auth := range map[string]*registry.AuthConfig{
		"password": {Username: "joe", Password: "secret"}, "identity token": {IdentityToken: "long-lived"}, "registry token": {RegistryToken: "t0"},
	} {
		r.drop(t, name)
		if err := i.Pull(ctx, name, engine.PullOptions{Auth: auth}, nil); err != nil {
			t.Errorf("%s: %v", what, err)
			r.put(t, text("app", name))
		}
	}
	r.drop(t, name)
	wantError(t, "nobody", i.Pull(ctx, name, engine.PullOptions{}, nil), api.PermissionDenied, "pull access denied for")
	wantError(t, "guess", i.Pull(ctx, name, engine.PullOptions{Auth: &registry.AuthConfig{Username: "joe", Password: "x"}}, nil), api.Unauthenticated, "unauthorized")
}

func TestMirror(t *testing.T) {
	var asked atomic.Int32
	backend := startRegistry(t, "")
	mirror := front(t, backend, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			asked.Add(1)
			if q.Header.Get("Authorization") != "" {
				t.Error("the mirror was shown Docker Hub's credentials: " + base64.StdEncoding.EncodeToString([]byte(q.Header.Get("Authorization"))))
			}
			h.ServeHTTP(w, q)
		})
	})
	r := newRig(t, func(c *Config) { c.Mirrors = []string{"http://" + mirror} })
	i, ctx := r.Images(), t.Context()
	r.put(t, text("app", backend+"/library/app:1"))
	if err := i.Push(ctx, backend+"/library/app:1", engine.PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	id := mustResolve(t, r, backend+"/library/app:1")
	r.drop(t, backend+"/library/app:1")
	if err := i.Pull(ctx, "app:1", engine.PullOptions{Auth: &registry.AuthConfig{Username: "a", Password: "b"}}, nil); err != nil {
		t.Fatal(err)
	}
	if mustResolve(t, r, "docker.io/library/app:1") != id || asked.Load() == 0 {
		t.Errorf("%d requests to the mirror", asked.Load())
	}
}

func TestAllTags(t *testing.T) {
	r, addr := newRig(t, nil), startRegistry(t, "")
	i, ctx := r.Images(), t.Context()
	r.put(t, text("a", addr+"/app:a"), text("b", addr+"/app:b"))
	if err := i.Push(ctx, addr+"/app", engine.PullOptions{AllTags: true}, nil); err != nil {
		t.Fatal(err)
	}
	r.drop(t, addr+"/app:a")
	r.drop(t, addr+"/app:b")
	if err := i.Pull(ctx, addr+"/app", engine.PullOptions{AllTags: true}, nil); err != nil {
		t.Fatal(err)
	}
	mustResolve(t, r, addr+"/app:a")
	mustResolve(t, r, addr+"/app:b")
	wantError(t, "no such repository", i.Pull(ctx, addr+"/none", engine.PullOptions{AllTags: true}, nil), api.NotFound, "not found")
}

// Callers that want the same image share one download, and one of them giving
// up does not end it for the others.
func TestPullOnce(t *testing.T) {
	var blobs atomic.Int32
	gate := make(chan struct{})
	started := make(chan struct{}, 16)
	backend := startRegistry(t, "")
	addr := front(t, backend, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/") {
				blobs.Add(1)
				started <- struct{}{}
				<-gate
			}
			h.ServeHTTP(w, q)
		})
	})
	r := newRig(t, nil)
	i, ctx := r.Images(), t.Context()
	r.put(t, text("app", backend+"/app:1"))
	if err := i.Push(ctx, backend+"/app:1", engine.PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	r.drop(t, backend+"/app:1")
	quits, quit := context.WithCancel(ctx)
	errs := make(chan error, 4)
	go func() { errs <- i.Pull(quits, addr+"/app:1", engine.PullOptions{}, nil) }()
	<-started
	for range 3 {
		go func() { errs <- i.Pull(ctx, addr+"/app:1", engine.PullOptions{}, nil) }()
	}
	waitFor(t, "all to wait", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, p := range i.pulls {
			p.mu.Lock()
			n := len(p.waiting)
			p.mu.Unlock()
			return n == 4
		}
		return false
	})
	quit()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(gate)
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := blobs.Load(); n != 3 { // a config and two layers
		t.Errorf("%d blobs were asked for, want 3", n)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.pulls) != 0 {
		t.Errorf("%d transfers are still known", len(i.pulls))
	}
}

func TestPullDamaged(t *testing.T) {
	damage := atomic.Bool{}
	backend := startRegistry(t, "")
	addr := front(t, backend, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if !damage.Load() || !strings.Contains(q.URL.Path, "/blobs/") {
				h.ServeHTTP(w, q)
				return
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, q)
			b, _ := io.ReadAll(rec.Body)
			if len(b) > 100 {
				b[len(b)/2] ^= 1
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			w.WriteHeader(rec.Code)
			_, _ = w.Write(b)
		})
	})
	r := newRig(t, nil)
	i, ctx, name := r.Images(), t.Context(), addr+"/app:1"
	r.put(t, text("app", name))
	if err := i.Push(ctx, name, engine.PullOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	r.drop(t, name)
	damage.Store(true)
	wantError(t, "damaged", i.Pull(ctx, name, engine.PullOptions{}, nil), api.Unavailable, "damaged")
	if list, err := i.List(ctx, engine.ImageListOptions{All: true}); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	damage.Store(false)
	if err := i.Pull(ctx, name, engine.PullOptions{}, nil); err != nil {
		t.Error(err)
	}
}

func TestCommit(t *testing.T) {
	r := newRig(t, nil)
	image := r.load(t)
	i, ctx := r.Images(), t.Context()
	st, _ := r.mustRun(t, image, "work", "all", "write", "/new", "word", ",", "echo", "ready", ",", "sleep")
	b := make([]byte, 6)
	if _, err := io.ReadFull(st.Stdout, b); err != nil {
		t.Fatal(err)
	}
	id, err := i.Commit(ctx, "work", engine.CommitOptions{Ref: "made:1", Comment: "c", Author: "me", Pause: true, Changes: []string{"ENV X=y"}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := i.Inspect(ctx, "made:1", engine.ImageInspectOptions{})
	if err != nil || info.ID != id || info.Author != "me" || len(info.RootFS.Layers) != 2 || !slices.Equal(info.Config.Env, []string{"X=y"}) || !slices.Equal(info.Config.Entrypoint, []string{"/prog"}) {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := i.Commit(ctx, "nothing", engine.CommitOptions{}); !api.Is(err, api.NotFound) {
		t.Errorf("commit of nothing: %v", err)
	}
	r.drop(t, "suite:1") // the container and its child image stand on it
	st, _ = r.mustRun(t, id, "child", "read", "/new")
	if b, err := io.ReadAll(st.Stdout); string(b) != "word" {
		t.Errorf("%q, %v", b, err)
	}
	st2, err := r.Create(ctx, engine.RuntimeContainer{ID: "orphan", Image: image, Spec: enginetest.Spec()})
	if !api.Is(err, api.NotFound) {
		t.Errorf("an image that was removed: %v, %v", st2, err)
	}
	r.mustRemove(t, "child", "work")
	r.drop(t, "made:1")
	if n, err := i.Usage(ctx); n != 0 || err != nil {
		t.Errorf("%d bytes left, %v", n, err)
	}
}

func TestInsecure(t *testing.T) {
	i := &Images{cfg: Config{Insecure: []string{"reg.example:5000", "plain.example", "10.0.0.0/8", "fd00::/8"}}}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:80": true, "127.9.9.9": true, "[::1]:5000": true, "::1": true,
		"reg.example:5000": true, "reg.example:5001": false, "reg.example": false, "plain.example:1": true, "10.1.2.3:5000": true,
		"11.1.2.3": false, "[fd00::1]:5000": true, "registry-1.docker.io": false, "localhost.example": false,
	} {
		if got := i.insecure(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}
