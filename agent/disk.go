package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/legion-swarm/legion/swarmpb"
)

const (
	taskSuffix = ".task"
	sumBytes   = 4
)

// disk keeps a node's tasks, a file each: a CRC-32 and the task as it goes over
// the wire, the agent's own status in it. Secrets are not among them. Files are
// replaced atomically, so a killed daemon loses nothing; they are not synced,
// because after a power failure the containers are gone too, and a torn file is
// found out by its sum and dropped: the managers send the task again.
type disk struct{ dir string }

func (d disk) path(id string) string { return filepath.Join(d.dir, id+taskSuffix) }

func (d disk) save(t *swarmpb.Task) error {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, sumBytes), t)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(b, crc32.ChecksumIEEE(b[sumBytes:]))
	tmp := d.path(t.GetId()) + "~"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, d.path(t.GetId()))
}

func (d disk) remove(id string) error {
	err := os.Remove(d.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// load reads all tasks. broken lists files that could not be read; they are
// removed.
func (d disk) load() (tasks []*swarmpb.Task, broken []string, err error) {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(d.dir, e.Name())
		if strings.HasSuffix(e.Name(), taskSuffix+"~") {
			if err := os.Remove(path); err != nil {
				return nil, nil, err
			}
			continue
		}
		if !strings.HasSuffix(e.Name(), taskSuffix) {
			continue
		}
		t, err := read(path)
		if err != nil || t.GetId()+taskSuffix != e.Name() {
			broken = append(broken, path)
			if err := os.Remove(path); err != nil {
				return nil, nil, err
			}
			continue
		}
		tasks = append(tasks, t)
	}
	return tasks, broken, nil
}

func read(path string) (*swarmpb.Task, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) < sumBytes || binary.BigEndian.Uint32(b) != crc32.ChecksumIEEE(b[sumBytes:]) {
		return nil, errors.New("checksum does not match")
	}
	t := &swarmpb.Task{}
	return t, proto.Unmarshal(b[sumBytes:], t)
}

// saver writes tasks to disk from one goroutine, so that no task waits for it
// and changes that come fast are written once. Only a daemon that starts while
// no manager answers needs what is on disk, so failures are logged and the task
// goes on.
type saver struct {
	disk disk
	log  *slog.Logger
	wake chan struct{}

	mu    sync.Mutex
	dirty map[string]*runner
}

func newSaver(d disk, log *slog.Logger) *saver {
	return &saver{disk: d, log: log, wake: make(chan struct{}, 1), dirty: map[string]*runner{}}
}

func (s *saver) put(r *runner) {
	s.mu.Lock()
	s.dirty[r.id] = r
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends; flush writes the rest.
func (s *saver) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			s.flush()
		}
	}
}

func (s *saver) flush() {
	s.mu.Lock()
	dirty := s.dirty
	s.dirty = map[string]*runner{}
	s.mu.Unlock()
	for id, r := range dirty {
		var err error
		if t := r.kept(); t != nil {
			err = s.disk.save(t)
		} else {
			err = s.disk.remove(id)
		}
		if err != nil {
			s.log.Error("keeping a task on disk", "task", id, "err", err)
		}
	}
}
