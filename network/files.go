package network

import (
	"path/filepath"
	"sync"
)

// wish is what a file is to hold.
type wish struct {
	dir, name string
	content   any // nil: the file is to be gone
	err       error
}

// files brings files of RuntimeDir to what was wished last. Wishes are made where
// state changes, under its lock and in its order; they are written without it, by one
// at a time, so that a file which was removed does not come back. The zero value is
// ready.
type files struct {
	turn sync.Mutex // of who writes; nobody else waits for it

	mu     sync.Mutex
	wishes map[string]*wish // by path
}

// want wishes for a file, in place of what was wished for it and not written yet.
// content must not be changed any more. It is fulfilled by the next write.
func (f *files) want(dir, name string, content any) *wish {
	w := &wish{dir: dir, name: name, content: content}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wishes == nil {
		f.wishes = map[string]*wish{}
	}
	f.wishes[filepath.Join(dir, name)] = w
	return w
}

// write fulfils all wishes that nobody fulfils yet, and returns those that failed.
// Given wishes of one's own, it returns once they are fulfilled, whoever did it: then
// their err stands. A nil one stands for all that were made before.
func (f *files) write(own ...*wish) (failed []*wish) {
	if len(own) == 0 && f.idle() {
		return nil
	}
	f.turn.Lock()
	defer f.turn.Unlock()
	f.mu.Lock()
	wishes := f.wishes
	f.wishes = nil
	f.mu.Unlock()
	for _, w := range wishes {
		if w.content == nil {
			w.err = forget(w.dir, w.name)
		} else {
			w.err = save(w.dir, w.name, w.content)
		}
		if w.err != nil {
			failed = append(failed, w)
		}
	}
	return failed
}

func (f *files) idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.wishes) == 0
}

// writeFiles brings the files to what was decided, and says which it can't; see
// files.write. Callers do not hold mu.
func (n *Networks) writeFiles(own ...*wish) {
	for _, w := range n.files.write(own...) {
		if w.content == nil {
			n.log.Warn("network: a file can't be removed; after a restart of the daemon it is taken for true", "file", filepath.Join(w.dir, w.name+fileSuffix), "error", w.err)
		} else {
			n.log.Warn("network: a file can't be written; a restart of the daemon forgets what is in it", "file", filepath.Join(w.dir, w.name+fileSuffix), "error", w.err)
		}
	}
}
