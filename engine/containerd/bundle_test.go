package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// The shim writes the exit record beside the daemon, which knows of the end already and
// removes the bundle.
func TestBundleIsRemovedWhileItsEndIsWritten(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "a")
	for range 100 {
		if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(filepath.Join(dir, "config.json"), "{}"); err != nil {
			t.Fatal(err)
		}
		begun, done := make(chan struct{}), make(chan error, 1)
		go func() {
			close(begun)
			var err error
			for err == nil && t.Context().Err() == nil { // until the folder is gone
				var f *os.File
				if f, err = os.CreateTemp(dir, ".tmp-exit.json"); err == nil {
					err = errors.Join(f.Close(), os.Rename(f.Name(), filepath.Join(dir, "exit.json")))
				}
			}
			done <- err
		}()
		<-begun
		if err := removeBundle(dir); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A removal that a crash cut short is completed at the next start.
func TestDoomedFoldersAreRemoved(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".a/deep", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeDoomed(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "b" {
		t.Errorf("left: %v", left)
	}
}
