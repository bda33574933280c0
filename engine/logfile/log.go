package logfile

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
)

// Log is one container's log. All methods are safe for concurrent use; the
// order of Append calls is the order in the file.
type Log struct {
	mu      sync.Mutex
	f       *os.File // nil: not open for writing
	size    int64
	gen     int           // counts rotations
	more    chan struct{} // closed when something changed; nil: nobody waits
	buf     []byte
	queue   *queue // nil when writes block
	zipping sync.WaitGroup

	path  string
	o     Options
	codec codec
}

// New returns the log at path, which need not exist. attrs are what --details
// shows with each line.
func New(path string, o *Options, attrs map[string]string) *Log {
	l := &Log{path: path, o: *o}
	if o.Driver == Local {
		l.codec = &localCodec{attrs: attrs}
	} else {
		l.codec = newJSONCodec(attrs)
	}
	return l
}

// Path of the current file; empty with driver none.
func (l *Log) Path() string {
	if l.o.Driver == None {
		return ""
	}
	return l.path
}

// Open makes the log ready for Append. Followers stay until Close. A second
// Open does nothing.
func (l *Log) Open() error {
	if l.o.Driver == None {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	end := info.Size()
	if end > 0 {
		if end, err = l.codec.end(f, end); err != nil {
			return errors.Join(fmt.Errorf("log %s: %w", l.path, err), f.Close())
		}
		if end != info.Size() {
			if err := f.Truncate(end); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	if _, err := f.Seek(end, io.SeekStart); err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, end
	if l.o.Buffer > 0 {
		l.queue = newQueue(l.o.Buffer)
		go l.queue.run(l.write)
	}
	return nil
}

// Append writes messages. After Close they are dropped.
func (l *Log) Append(ms ...Message) error {
	if l.o.Driver == None || len(ms) == 0 {
		return nil
	}
	l.mu.Lock()
	q := l.queue
	l.mu.Unlock()
	if q != nil {
		q.put(ms)
		return nil
	}
	return l.write(ms)
}

func (l *Log) write(ms []Message) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	if l.o.MaxSize > 0 && l.size >= l.o.MaxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	b := l.buf[:0]
	for i := range ms {
		b = l.codec.append(b, &ms[i])
	}
	if cap(b) <= 256<<10 {
		l.buf = b
	}
	n, err := l.f.Write(b)
	if err != nil { // do not leave half a record for the next ones to follow
		if n > 0 {
			if terr := l.f.Truncate(l.size); terr == nil {
				_, _ = l.f.Seek(l.size, io.SeekStart)
			}
		}
		return fmt.Errorf("log %s: %w", l.path, err)
	}
	l.size += int64(n)
	l.wake()
	return nil
}

// wake tells followers. The caller holds mu.
func (l *Log) wake() {
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// Close ends writing: followers end once they have read all.
func (l *Log) Close() error {
	l.mu.Lock()
	q := l.queue
	l.queue = nil
	l.mu.Unlock()
	if q != nil {
		q.close()
	}
	l.zipping.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	l.wake()
	return err
}

func (l *Log) name(k int) string {
	if k == 0 {
		return l.path
	}
	return l.path + "." + strconv.Itoa(k)
}

// rotate makes way for a new current file. The caller holds mu. On error the
// current file goes on.
func (l *Log) rotate() error {
	l.zipping.Wait()
	if l.o.MaxFiles < 2 {
		if err := l.f.Truncate(0); err != nil {
			return err
		}
		if _, err := l.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		l.size = 0
		l.gen++
		return nil
	}
	for k := l.o.MaxFiles - 1; k >= 1; k-- {
		for _, ext := range []string{"", ".gz"} {
			var err error
			if k == l.o.MaxFiles-1 {
				err = os.Remove(l.name(k) + ext)
			}
			if k > 1 && (err == nil || errors.Is(err, fs.ErrNotExist)) {
				err = os.Rename(l.name(k-1)+ext, l.name(k)+ext)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Rename(l.path, l.name(1)); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return errors.Join(err, os.Rename(l.name(1), l.path))
	}
	err = l.f.Close()
	l.f, l.size = f, 0
	l.gen++
	if l.o.Compress {
		l.zipping.Go(func() { _ = compress(l.name(1)) }) // what can't be compressed stays as it is
	}
	return err
}

// compress replaces a file by its gzipped self.
func compress(name string) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // nothing was written
	tmp := name + ".gz.tmp"
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err == nil {
		err = os.Rename(tmp, name+".gz")
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Remove(name)
}

// Size returns the bytes of all files.
func (l *Log) Size() int64 {
	var n int64
	for k := range l.o.MaxFiles {
		found := false
		for _, ext := range []string{"", ".gz"} {
			if info, err := os.Stat(l.name(k) + ext); err == nil {
				n += info.Size()
				found = true
			}
		}
		if !found {
			break
		}
	}
	return n
}
