package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/zstd"
)

func packed(t *testing.T, programs map[string]string) fstest.MapFS {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var sums strings.Builder
	f := fstest.MapFS{}
	for name, text := range programs {
		sum := sha256.Sum256([]byte(text))
		fmt.Fprintf(&sums, "%s 1.2.3 %s\n", hex.EncodeToString(sum[:]), name)
		f[name+".zst"] = &fstest.MapFile{Data: enc.EncodeAll([]byte(text), nil)}
	}
	f["SUMS"] = &fstest.MapFile{Data: []byte(sums.String())}
	return f
}

func three() map[string]string { return map[string]string{Runc: "runc!", Shim: "shim!", Init: "init!"} }

func TestUnpack(t *testing.T) {
	f, dir := packed(t, three()), t.TempDir()
	p, err := unpack(f, dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{p.Runc, p.Shim, p.Init} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	if v := p.Versions(t.Context())[Runc]; v != "1.2.3" {
		t.Errorf("version %q", v)
	}
	before, _ := os.Stat(p.Runc)
	if _, err := unpack(f, dir); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(p.Runc); !after.ModTime().Equal(before.ModTime()) {
		t.Error("unpacked again though nothing was wrong")
	}
}

func TestUnpackMendsDamage(t *testing.T) {
	f, dir := packed(t, three()), t.TempDir()
	p, err := unpack(f, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Shim, []byte("evil"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(f, dir); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(p.Shim); string(b) != "shim!" {
		t.Errorf("shim is %q", b)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".new-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUnpackRefuses(t *testing.T) {
	wrong := packed(t, three())
	wrong[Runc+".zst"] = wrong[Shim+".zst"]
	few := packed(t, map[string]string{Runc: "x"})
	for name, f := range map[string]fstest.MapFS{"no sums": {}, "wrong sum": wrong, "program missing": few} {
		dir := t.TempDir()
		if _, err := unpack(f, dir); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if name == "wrong sum" {
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s: left %v", name, left)
			}
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if _, err := find([]string{dir}); err == nil || !strings.Contains(err.Error(), "runc and containerd-shim-runc-v2 not found") || !strings.Contains(err.Error(), "apt-get install") {
		t.Errorf("error %v", err)
	}
	for _, n := range []string{Runc, Shim} {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\necho "+n+" version 9.8.7\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p, err := find([]string{"relative", dir})
	if err != nil {
		t.Fatal(err)
	}
	if p.Own || p.ContainersPerShim() != 12 || p.Init != "" {
		t.Errorf("%+v", p)
	}
	if v := p.Versions(t.Context()); v[Runc] != "9.8.7" || v[Shim] != "9.8.7" {
		t.Errorf("versions %v", v)
	}
}
