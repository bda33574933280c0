package test

import (
	"archive/tar"
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/enginetest"
)

func names(t *testing.T, b []byte) []string {
	t.Helper()
	var list []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF { //nolint:errorlint // as the package documents
			slices.Sort(list)
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, h.Name)
	}
}

func TestCopy(t *testing.T) {
	r := newRig(t)
	r.image(t, nil)
	id := r.create(t, "", nil, "read", "/data/new") // never started
	in := enginetest.Tar(t, map[string][]byte{"new": []byte("from outside")})
	if err := r.ContainerExtract(t.Context(), id, "/data", bytes.NewReader(in), false, false); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string][]string{
		"/data/new": {"new"}, "/data": {"data/", "data/new", "data/seed"}, "/data/.": {"./", "./new", "./seed"},
	} {
		var b bytes.Buffer
		var st *container.PathStat
		if err := r.ContainerArchive(t.Context(), id, path, &b, func(s *container.PathStat) { st = s }); err != nil {
			t.Fatal(err)
		}
		if got := names(t, b.Bytes()); !slices.Equal(got, want) || st == nil {
			t.Errorf("%s: %q, want %q; %+v", path, got, want, st)
		}
	}
	_, err := r.ContainerStatPath(t.Context(), id, "/nothing")
	if !api.Is(err, api.NotFound) {
		t.Error(err)
	}
	if err := r.ContainerExtract(t.Context(), id, "/data/new", bytes.NewReader(in), false, false); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
	if err := r.ContainerExtract(t.Context(), id, "/data", bytes.NewReader(enginetest.Tar(t, map[string][]byte{"../../out": nil})), false, false); err == nil {
		t.Error("an archive wrote outside of its folder")
	}
	r.start(t, id)
	if code := r.wait(t, id); code != 0 || r.output(t, id) != "from outside" {
		t.Errorf("%d %q", code, r.output(t, id))
	}
	// What is made for the container, not in its image.
	made, err := r.ContainerInspect(t.Context(), id, false)
	if err != nil {
		t.Fatal(err)
	}
	host := made.Config.Hostname + "\n"
	if st, err := r.ContainerStatPath(t.Context(), id, "/etc/hostname"); err != nil || st.Name != "hostname" || st.Size != int64(len(host)) {
		t.Errorf("%+v, %v", st, err)
	}
}
