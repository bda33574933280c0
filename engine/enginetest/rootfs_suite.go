package enginetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

func (s *runtimeSuite) rootfs(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	runTo := func(reuse bool, args ...string) int {
		t.Helper()
		st, err := s.r.Create(ctx, engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: Spec(args...), ReuseRootfs: reuse})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.r.Start(ctx, id); err != nil {
			t.Fatal(err)
		}
		drain(st)
		code := s.exit(t, id).Code
		if err := s.r.Delete(ctx, id); err != nil {
			t.Fatal(err)
		}
		return code
	}
	defer s.remove(t, id)
	if code := runTo(false, "write", "/file", "word"); code != 0 {
		t.Fatalf("status %d", code)
	}
	path, release, err := s.r.Mount(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(b) != "word" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(path, "from-outside"), []byte("x"), 0o644); err != nil {
		t.Error(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if n, err := s.r.Usage(ctx, id); err != nil || n <= 0 {
		t.Errorf("usage %d, %v", n, err)
	}
	if code := runTo(true, "all", "read", "/file", ",", "read", "/from-outside", ",", "remove", "/prog"); code != 0 {
		t.Errorf("the layer was not kept: status %d", code)
	}
	changes, err := s.r.Changes(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]container.ChangeType)
	for _, c := range changes {
		kinds[c.Path] = c.Kind
	}
	if kinds["/file"] != container.ChangeAdd || kinds["/prog"] != container.ChangeDelete {
		t.Errorf("changes %v", changes)
	}
	if code := runTo(false, "read", "/file"); code != 1 {
		t.Errorf("a new layer has the old one's file: status %d", code)
	}
}

// makeRootfs prepares a root without a process, as for a container that is
// created and not started.
func (s *runtimeSuite) makeRootfs(t *testing.T) {
	ctx, id := t.Context(), s.id(t)
	expect(t, "an image that is not there", s.r.MakeRootfs(ctx, id, "sha256:"+strings.Repeat("0", 64), "", 0), api.NotFound)
	if err := s.r.MakeRootfs(ctx, id, s.env.Image, "", 0); err != nil {
		t.Fatal(err)
	}
	path, release, err := s.r.Mount(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "before"), []byte("word"), 0o644); err != nil {
		t.Error(err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	st, _ := s.run(t, engine.RuntimeContainer{ID: id, Spec: Spec("read", "/before"), ReuseRootfs: true})
	if got := readAll(t, st.Stdout); got != "word" {
		t.Errorf("read %q", got)
	}
	s.exit(t, id)
}

func (s *runtimeSuite) emptyRoot(t *testing.T) {
	id := s.id(t)
	_, err := s.r.Create(t.Context(), engine.RuntimeContainer{ID: id, Spec: Spec("echo")})
	if err == nil {
		_, err = s.r.Start(t.Context(), id)
	}
	if err == nil {
		t.Error("a program ran in an empty root")
	}
	s.remove(t, id)
}
