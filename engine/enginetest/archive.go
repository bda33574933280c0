package enginetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// Prog builds the program that the suites' images hold; see its own comment
// for what it can do.
func Prog(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "prog")
	cmd := exec.Command("go", "build", "-o", path, "github.com/legion-swarm/legion/engine/enginetest/prog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the test program: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Image describes an image to put in an archive.
type Image struct {
	Tags    []string
	Config  map[string]any // of the container: Cmd, Env, Labels …
	Created string         // RFC 3339
	Layers  []map[string][]byte
}

// ProgImage is an image with the program as its only file.
func ProgImage(prog []byte, tags ...string) Image {
	return Image{
		Tags: tags, Created: "2026-01-02T03:04:05Z",
		Config: map[string]any{"Entrypoint": []string{"/prog"}, "Labels": map[string]string{"suite": "1"}},
		Layers: []map[string][]byte{{"prog": prog}},
	}
}

// DockerArchive writes images as `docker save` did before OCI layouts.
func DockerArchive(t testing.TB, list ...Image) []byte {
	t.Helper()
	files := make(map[string][]byte)
	type entry struct {
		Config           string
		RepoTags, Layers []string
	}
	var manifest []entry
	for n, img := range list {
		e := entry{Config: fmt.Sprintf("config%d.json", n), RepoTags: img.Tags}
		var diffs []string
		for k, l := range img.Layers {
			name := fmt.Sprintf("layer%d-%d.tar", n, k)
			files[name] = Tar(t, l)
			sum := sha256.Sum256(files[name])
			diffs = append(diffs, "sha256:"+hex.EncodeToString(sum[:]))
			e.Layers = append(e.Layers, name)
		}
		files[e.Config] = marshal(t, map[string]any{
			"architecture": runtime.GOARCH, "os": "linux", "created": img.Created, "config": img.Config,
			"rootfs":  map[string]any{"type": "layers", "diff_ids": diffs},
			"history": []map[string]any{{"created": img.Created, "created_by": "suite"}},
		})
		manifest = append(manifest, e)
	}
	files["manifest.json"] = marshal(t, manifest)
	return Tar(t, files)
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Tar makes a tar archive of executable files, in the order of their names.
func Tar(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
