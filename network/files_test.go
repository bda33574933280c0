package network

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
)

// held returns what a file holds; empty: it is not there.
func held(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name+fileSuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	var f files
	dir := filepath.Join(t.TempDir(), "made")
	f.want(dir, "a", 1)
	f.want(dir, "b", 2)
	f.want(dir, "b", nil) // before it was written
	f.want(dir, "c", nil)
	f.want(dir, "c", 3)
	if failed := f.write(); failed != nil || held(t, dir, "a") != "1" || held(t, dir, "b") != "" || held(t, dir, "c") != "3" {
		t.Error(failed, held(t, dir, "a"), held(t, dir, "b"), held(t, dir, "c"))
	}
	f.want(dir, "a", nil)
	if failed := f.write(); failed != nil || held(t, dir, "a") != "" {
		t.Error(failed, held(t, dir, "a"))
	}
	w := f.want(filepath.Join(dir, "c"+fileSuffix), "under a file", 1)
	if failed := f.write(); len(failed) != 1 || failed[0] != w || w.err == nil {
		t.Error(failed, w.err)
	}
	if failed := f.write(); failed != nil {
		t.Error("it is tried once:", failed)
	}
}

// However many write at a time, each file ends as what was wished last.
func TestFilesAreWrittenInOrder(t *testing.T) {
	var f files
	dir := t.TempDir()
	var state sync.Mutex // as Networks.mu
	last := map[string]string{}
	var wait sync.WaitGroup
	for writer := range 8 {
		wait.Go(func() {
			for i := range 50 {
				name, content := strconv.Itoa(i%3), any(writer*1000+i)
				if i%2 == 0 {
					content = nil
				}
				state.Lock()
				f.want(dir, name, content)
				if last[name] = ""; content != nil {
					last[name] = strconv.Itoa(content.(int))
				}
				state.Unlock()
				if failed := f.write(); failed != nil {
					t.Error(failed)
				}
			}
		})
	}
	wait.Wait()
	for name, want := range last {
		if got := held(t, dir, name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
}
