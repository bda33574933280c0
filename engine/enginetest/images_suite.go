package enginetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// Images holds an image store to the contract of engine.Images, registries
// aside. open gives an empty one.
func Images(t *testing.T, open func(t *testing.T) engine.Images) {
	for _, c := range []struct {
		name string
		f    func(*imagesSuite, *testing.T)
	}{
		{"Load", (*imagesSuite).load}, {"Malformed", (*imagesSuite).malformed}, {"Names", (*imagesSuite).names},
		{"List", (*imagesSuite).list}, {"Filters", (*imagesSuite).filters}, {"Inspect", (*imagesSuite).inspect},
		{"Remove", (*imagesSuite).remove}, {"RemoveInUse", (*imagesSuite).removeInUse}, {"Retag", (*imagesSuite).retag},
		{"Prune", (*imagesSuite).prune}, {"Save", (*imagesSuite).save}, {"Import", (*imagesSuite).importTar},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(&imagesSuite{open(t)}, t) })
	}
}

type imagesSuite struct{ i engine.Images }

// small is an image with a file that is its text.
func small(text string, tags ...string) Image {
	return Image{
		Tags: tags, Created: "2026-01-02T03:04:05Z",
		Config: map[string]any{
			"Cmd": []string{"/" + text}, "Env": []string{"A=b"}, "Labels": map[string]string{"text": text}, "Shell": []string{"/sh"},
			"Healthcheck": map[string]any{"Test": []string{"CMD", "true"}, "Retries": 2},
		},
		Layers: []map[string][]byte{{"base": []byte("base")}, {text: []byte(strings.Repeat(text, 1000))}},
	}
}

func (s *imagesSuite) put(t *testing.T, list ...Image) []string {
	t.Helper()
	out, err := s.loadBytes(t, DockerArchive(t, list...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *imagesSuite) loadBytes(t *testing.T, b []byte) ([]string, error) {
	t.Helper()
	var lines []string
	err := s.i.Load(t.Context(), bytes.NewReader(b), nil, func(m jsonstream.Message) {
		if m.Stream != "" {
			lines = append(lines, strings.TrimSpace(m.Stream))
		}
	})
	return lines, err
}

func (s *imagesSuite) id(t *testing.T, name string) string {
	t.Helper()
	img, err := s.i.Resolve(t.Context(), name)
	if err != nil {
		t.Fatalf("resolve %s: %v", name, err)
	}
	return img.ID
}

func (s *imagesSuite) all(t *testing.T, f api.Filters) []image.Summary {
	t.Helper()
	list, err := s.i.List(t.Context(), engine.ImageListOptions{Filters: f})
	if err != nil {
		t.Fatalf("list %v: %v", f, err)
	}
	return list
}

func (s *imagesSuite) load(t *testing.T) {
	plain := DockerArchive(t, small("one", "one:1"), small("two", "two:2", "other/two:x"))
	var zipped, zstded bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(plain)
	_ = z.Close()
	zs, err := zstd.NewWriter(&zstded)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = zs.Write(plain)
	_ = zs.Close()
	for name, b := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zstded.Bytes()} {
		lines, err := s.loadBytes(t, b)
		slices.Sort(lines)
		want := []string{"Loaded image: one:1", "Loaded image: other/two:x", "Loaded image: two:2"}
		if err != nil || !slices.Equal(lines, want) {
			t.Errorf("%s: %q, %v", name, lines, err)
		}
	}
	img, err := s.i.Resolve(t.Context(), "one:1")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(img.ID, "sha256:") || img.Name != "one:1" || img.Digest != img.ID || !strings.HasPrefix(img.Platform, "linux/") ||
		!slices.Equal(img.Config.Config.Cmd, []string{"/one"}) || !slices.Equal(img.Docker.Shell, []string{"/sh"}) || img.Docker.Healthcheck == nil || img.Docker.Healthcheck.Retries != 2 {
		t.Errorf("%+v", img)
	}
	lines := s.put(t, small("none"))
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "Loaded image ID: sha256:") {
		t.Errorf("without a name: %q", lines)
	}
}

func (s *imagesSuite) malformed(t *testing.T) {
	good := DockerArchive(t, small("one", "one:1"))
	config := map[string][]byte{"manifest.json": []byte(`[{"Config":"c.json","RepoTags":["x:1"],"Layers":["l.tar"]}]`), "l.tar": Tar(t, map[string][]byte{"f": []byte("x")})}
	with := func(c string) []byte {
		config["c.json"] = []byte(c)
		return Tar(t, config)
	}
	badName := small("one", "UPPER:1")
	for name, b := range map[string][]byte{
		"empty":           nil,
		"text":            []byte("this is not an archive"),
		"cut":             good[:len(good)/2],
		"cut gzip":        {0x1f, 0x8b, 8, 0, 0},
		"no manifest":     Tar(t, map[string][]byte{"file": []byte("x")}),
		"manifest text":   Tar(t, map[string][]byte{"manifest.json": []byte("{")}),
		"no images":       Tar(t, map[string][]byte{"manifest.json": []byte("[]")}),
		"no config":       Tar(t, map[string][]byte{"manifest.json": []byte(`[{"Config":"c.json","Layers":[]}]`)}),
		"no layer":        Tar(t, map[string][]byte{"manifest.json": []byte(`[{"Config":"c.json","Layers":["l.tar"]}]`), "c.json": []byte("{}")}),
		"config text":     with("nonsense"),
		"layers differ":   with(`{"os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`),
		"wrong diff id":   with(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("0", 64) + `"]}}`),
		"diff id text":    with(`{"os":"linux","rootfs":{"type":"layers","diff_ids":["x"]}}`),
		"bad name":        DockerArchive(t, badName),
		"oci, no index":   Tar(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}),
		"oci, no blob":    Tar(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("1", 64) + `","size":3}]}`)}),
		"oci, other type": Tar(t, map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"text/plain","digest":"sha256:` + strings.Repeat("1", 64) + `","size":3}]}`)}),
	} {
		_, err := s.loadBytes(t, b)
		expect(t, name, err, api.Invalid)
	}
	if list := s.all(t, nil); len(list) != 0 {
		t.Errorf("left behind: %+v", list)
	}
	if n, err := s.i.Usage(t.Context()); err != nil || n != 0 {
		t.Errorf("%d bytes left behind, %v", n, err)
	}
}

func (s *imagesSuite) names(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("one", "one:latest"))
	id := s.id(t, "one")
	hex := strings.TrimPrefix(id, "sha256:")
	for _, name := range []string{"one:latest", "docker.io/library/one", "index.docker.io/library/one:latest", "library/one", id, hex, hex[:12], "sha256:" + hex[:20], "one@" + id} {
		img, err := s.i.Resolve(ctx, name)
		if err != nil || img.ID != id {
			t.Errorf("%s: %+v, %v", name, img, err)
		}
	}
	for _, name := range []string{"two", "one:other", "example.com/one", "two@" + id, "sha256:" + strings.Repeat("0", 64), "ffffffffffff"} {
		_, err := s.i.Resolve(ctx, name)
		expect(t, name, err, api.NotFound)
		if err != nil && err.Error() != "No such image: "+name {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := s.i.Resolve(ctx, "")
	expect(t, "empty name", err, api.Invalid)
	expect(t, "tag what is not there", s.i.Tag(ctx, "two", "three"), api.NotFound)
	expect(t, "tag with a bad name", s.i.Tag(ctx, "one", "a:b:c"), api.Invalid)
	expect(t, "tag with a digest", s.i.Tag(ctx, "one", "x@"+id), api.Invalid)
	expect(t, "pull with a bad name", s.i.Pull(ctx, "a b", engine.PullOptions{}, nil), api.Invalid)
	expect(t, "push of what is not there", s.i.Push(ctx, "localhost:1/nothing:1", engine.PullOptions{}, nil), api.NotFound)
	if err := s.i.Tag(ctx, hex[:12], "reg.example.com:5000/a/b:v1"); err != nil {
		t.Error(err)
	}
	if s.id(t, "reg.example.com:5000/a/b:v1") != id {
		t.Error("a tag means another image")
	}
}

func (s *imagesSuite) list(t *testing.T) {
	s.put(t, small("one", "one:1", "again:1"), small("two", "two:1"))
	list := s.all(t, nil)
	if len(list) != 2 {
		t.Fatalf("%d images", len(list))
	}
	n := slices.IndexFunc(list, func(x image.Summary) bool { return x.ID == s.id(t, "one:1") })
	one := list[n]
	if !slices.Equal(one.RepoTags, []string{"again:1", "one:1"}) || !slices.Equal(one.RepoDigests, []string{"again@" + one.ID, "one@" + one.ID}) {
		t.Errorf("names %v, %v", one.RepoTags, one.RepoDigests)
	}
	if one.Size < 3000 || one.Created != 1767323045 || one.Labels["text"] != "one" || one.SharedSize != -1 || one.Containers != -1 || one.Descriptor == nil {
		t.Errorf("%+v", one)
	}
	list, err := s.i.List(t.Context(), engine.ImageListOptions{SharedSize: true, Manifests: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if x.SharedSize <= 0 || x.SharedSize >= x.Size || len(x.Manifests) != 1 || !x.Manifests[0].Available || x.Manifests[0].ImageData.Platform.OS != "linux" {
			t.Errorf("%+v", x)
		}
	}
}

func (s *imagesSuite) filters(t *testing.T) {
	older := small("old", "team/old:1")
	older.Created = "2020-01-01T00:00:00Z"
	s.put(t, older, small("new", "new:1", "new:2"), small("bare"))
	for _, c := range []struct {
		f    api.Filters
		want string
	}{
		{nil, "bare new old"},
		{api.Filters{"dangling": {"true"}}, "bare"}, {api.Filters{"dangling": {"false"}}, "new old"},
		{api.Filters{"label": {"text"}}, "bare new old"}, {api.Filters{"label": {"text=new"}}, "new"},
		{api.Filters{"label": {"text=new", "other"}}, ""}, {api.Filters{"reference": {"new"}}, "new"},
		{api.Filters{"reference": {"new:2"}}, "new"}, {api.Filters{"reference": {"team/*"}}, "old"},
		{api.Filters{"reference": {"new", "team/old"}}, "new old"}, {api.Filters{"before": {"new:1"}}, "old"},
		{api.Filters{"since": {"team/old:1"}}, "bare new"}, {api.Filters{"until": {"2021-01-01"}}, "old"},
	} {
		var got []string
		for _, x := range s.all(t, c.f) {
			got = append(got, x.Labels["text"])
		}
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: %v, want %s", c.f, got, c.want)
		}
	}
	for _, f := range []api.Filters{{"nonsense": {"x"}}, {"dangling": {"perhaps"}}, {"until": {"soon"}}, {"reference": {"["}}} {
		_, err := s.i.List(t.Context(), engine.ImageListOptions{Filters: f})
		expect(t, "filter", err, api.Invalid)
	}
	_, err := s.i.List(t.Context(), engine.ImageListOptions{Filters: api.Filters{"before": {"nothing"}}})
	expect(t, "before what is not there", err, api.NotFound)
}

func (s *imagesSuite) inspect(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("one", "one:1"))
	r, err := s.i.Inspect(ctx, "one:1", engine.ImageInspectOptions{Manifests: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.ID != s.id(t, "one:1") || !slices.Equal(r.RepoTags, []string{"one:1"}) || r.Os != "linux" || r.Created != "2026-01-02T03:04:05Z" ||
		len(r.RootFS.Layers) != 2 || r.Size < 3000 || r.Config == nil || r.Config.Labels["text"] != "one" || r.Config.Healthcheck == nil || len(r.Manifests) != 1 {
		t.Errorf("%+v", r)
	}
	h, err := s.i.History(ctx, "one:1", nil)
	if err != nil || len(h) != 2 || h[0].ID != r.ID || h[1].CreatedBy+h[0].CreatedBy != "suite" || !slices.Equal(h[0].Tags, []string{"one:1"}) || h[1].ID != "<missing>" {
		t.Errorf("%+v, %v", h, err)
	}
	other := &ocispec.Platform{OS: "plan9", Architecture: "mips"}
	_, err = s.i.Inspect(ctx, "one:1", engine.ImageInspectOptions{Platform: other})
	expect(t, "another platform", err, api.NotFound)
	_, err = s.i.Inspect(ctx, "nothing", engine.ImageInspectOptions{})
	expect(t, "inspect what is not there", err, api.NotFound)
	_, err = s.i.History(ctx, "nothing", nil)
	expect(t, "history of what is not there", err, api.NotFound)
}

func unused(string) (string, bool) { return "", false }

func (s *imagesSuite) remove(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("one", "one:1", "one:2"), small("two", "two:1", "other:1"))
	id := s.id(t, "one:1")
	got, err := s.i.Remove(ctx, "one:1", engine.ImageRemoveOptions{}, unused)
	if err != nil || !slices.Equal(got, []image.DeleteResponse{{Untagged: "one:1"}}) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = s.i.Remove(ctx, "one:2", engine.ImageRemoveOptions{}, unused)
	if err != nil || !slices.Equal(got, []image.DeleteResponse{{Untagged: "one:2"}, {Deleted: id}}) {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = s.i.Remove(ctx, id, engine.ImageRemoveOptions{}, unused)
	expect(t, "remove twice", err, api.NotFound)
	two := s.id(t, "two:1")
	_, err = s.i.Remove(ctx, two, engine.ImageRemoveOptions{}, unused)
	expect(t, "by id, in several repositories", err, api.Conflict)
	if got, err = s.i.Remove(ctx, two, engine.ImageRemoveOptions{Force: true}, unused); err != nil || len(got) != 3 {
		t.Errorf("%+v, %v", got, err)
	}
	if n, err := s.i.Usage(ctx); err != nil || n != 0 {
		t.Errorf("%d bytes left, %v", n, err)
	}
	s.put(t, small("one", "one:1")) // and it can be loaded again
	s.id(t, "one:1")
}

func (s *imagesSuite) removeInUse(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("one", "one:1"))
	id := s.id(t, "one:1")
	running := func(string) (string, bool) { return "0123456789abcdef", true }
	stopped := func(string) (string, bool) { return "0123456789abcdef", false }
	for name, f := range map[string]func(string) (string, bool){"running": running, "stopped": stopped} {
		for _, ref := range []string{id, "one:1"} {
			_, err := s.i.Remove(ctx, ref, engine.ImageRemoveOptions{}, f)
			expect(t, name+" "+ref, err, api.Conflict)
			if err != nil && !strings.Contains(err.Error(), "0123456789ab") {
				t.Errorf("%v does not name the container", err)
			}
		}
	}
	_, err := s.i.Remove(ctx, id, engine.ImageRemoveOptions{Force: true}, running)
	expect(t, "running, by id and force", err, api.Conflict)
	got, err := s.i.Remove(ctx, "one:1", engine.ImageRemoveOptions{Force: true}, running)
	if err != nil || !slices.Equal(got, []image.DeleteResponse{{Untagged: "one:1"}}) {
		t.Errorf("running, by name and force: %+v, %v", got, err)
	}
	if list := s.all(t, api.Filters{"dangling": {"true"}}); len(list) != 1 || list[0].ID != id {
		t.Errorf("%+v", list)
	}
	if _, err := s.i.Remove(ctx, id, engine.ImageRemoveOptions{Force: true}, stopped); err != nil {
		t.Error(err)
	}
}

func (s *imagesSuite) retag(t *testing.T) {
	s.put(t, small("one", "app:1"))
	old := s.id(t, "app:1")
	s.put(t, small("two", "app:1"))
	if s.id(t, "app:1") == old {
		t.Error("the tag still means the old image")
	}
	list := s.all(t, api.Filters{"dangling": {"true"}})
	if len(list) != 1 || list[0].ID != old || len(list[0].RepoTags) != 0 {
		t.Errorf("%+v", list)
	}
	if err := s.i.Tag(t.Context(), old, "app:old"); err != nil {
		t.Fatal(err)
	}
	if list := s.all(t, api.Filters{"dangling": {"true"}}); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func (s *imagesSuite) prune(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("bare"), small("used", "used:1"), small("free", "free:1"))
	none := func(string) bool { return false }
	_, err := s.i.Prune(ctx, api.Filters{"nonsense": {"x"}}, none)
	expect(t, "filter", err, api.Invalid)
	r, err := s.i.Prune(ctx, api.Filters{"label": {"text=other"}}, none)
	if err != nil || len(r.ImagesDeleted) != 0 || r.SpaceReclaimed != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = s.i.Prune(ctx, nil, none); err != nil || len(r.ImagesDeleted) != 1 || r.ImagesDeleted[0].Deleted == "" || r.SpaceReclaimed < 4000 {
		t.Errorf("%+v, %v", r, err)
	}
	used := s.id(t, "used:1")
	if r, err = s.i.Prune(ctx, api.Filters{"dangling": {"false"}}, func(id string) bool { return id == used }); err != nil || len(r.ImagesDeleted) != 2 || r.ImagesDeleted[0].Untagged != "free:1" {
		t.Errorf("%+v, %v", r, err)
	}
	if list := s.all(t, nil); len(list) != 1 || list[0].ID != used {
		t.Errorf("%+v", list)
	}
}

func (s *imagesSuite) save(t *testing.T) {
	ctx := t.Context()
	s.put(t, small("one", "one:1"), small("two", "two:1"))
	one, two := s.id(t, "one:1"), s.id(t, "two:1")
	var b bytes.Buffer
	expect(t, "save what is not there", s.i.Save(ctx, []string{"one:1", "nothing"}, nil, io.Discard), api.NotFound)
	expect(t, "save nothing", s.i.Save(ctx, nil, nil, io.Discard), api.Invalid)
	if err := s.i.Save(ctx, []string{"one:1", two}, nil, &b); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{one, two} {
		if _, err := s.i.Remove(ctx, id, engine.ImageRemoveOptions{Force: true}, unused); err != nil {
			t.Fatal(err)
		}
	}
	lines, err := s.loadBytes(t, b.Bytes())
	slices.Sort(lines)
	if err != nil || !slices.Equal(lines, []string{"Loaded image ID: " + two, "Loaded image: one:1"}) {
		t.Errorf("%q, %v", lines, err)
	}
	if s.id(t, "one:1") != one || s.id(t, two) != two {
		t.Error("what was loaded is not what was saved")
	}
}

func (s *imagesSuite) importTar(t *testing.T) {
	ctx := context.Background()
	id, err := s.i.Import(ctx, bytes.NewReader(Tar(t, map[string][]byte{"file": []byte("x")})), "imported:1", engine.ImportOptions{
		Message: "hello", Changes: []string{`CMD ["/file"]`, "ENV K=v L='w x'", "EXPOSE 80", "LABEL a=b", "WORKDIR /w", "HEALTHCHECK --retries=3 CMD true"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.i.Inspect(ctx, "imported:1", engine.ImageInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, port := r.Config.ExposedPorts["80/tcp"]
	if r.ID != id || !slices.Equal(r.Config.Cmd, []string{"/file"}) || !slices.Equal(r.Config.Env, []string{"K=v", "L=w x"}) || !port ||
		r.Config.Labels["a"] != "b" || r.Config.WorkingDir != "/w" || r.Config.Healthcheck == nil || r.Config.Healthcheck.Retries != 3 {
		t.Errorf("%+v, config %+v", r, r.Config)
	}
	if h, err := s.i.History(ctx, id, nil); err != nil || len(h) != 1 || h[0].Comment != "hello" {
		t.Errorf("%+v, %v", h, err)
	}
	for _, c := range []string{"RUN x", "ENV", "EXPOSE banana", `ENV A="`} {
		_, err := s.i.Import(ctx, bytes.NewReader(nil), "", engine.ImportOptions{Changes: []string{c}})
		expect(t, c, err, api.Invalid)
	}
	_, err = s.i.Import(ctx, strings.NewReader("no archive, no archive, no archive"), "bad:1", engine.ImportOptions{})
	expect(t, "no archive", err, api.Invalid)
	_, err = s.i.Resolve(ctx, "bad:1")
	expect(t, "an import that failed", err, api.NotFound)
}
