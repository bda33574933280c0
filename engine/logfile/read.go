package logfile

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/legion-swarm/legion/api"
)

// ReadOptions select messages.
type ReadOptions struct {
	// Tail is how many of the last messages; negative: all.
	Tail         int
	Since, Until time.Time // zero: no bound
	// Follow goes on until the log is closed, ctx ends or Until has passed.
	Follow bool
}

const (
	readBlock = 64 << 10
	// maxRecord bounds what a damaged file can make a reader hold.
	maxRecord = 4 << 20
)

// errPast ends a read at Until.
var errPast = errors.New("logfile: past the end of the time asked for")

// Read calls fn for each message, in order. fn must not keep the line. Driver
// none can't be read: Unimplemented.
func (l *Log) Read(ctx context.Context, o ReadOptions, fn func(Message) error) error {
	if l.o.Driver == None {
		return api.Errorf(api.Unimplemented, "configured logging driver does not support reading")
	}
	files, gen, err := l.files()
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.close()
		}
	}()
	if o.Tail >= 0 {
		if files, err = l.seekTail(files, o.Tail); err != nil {
			return err
		}
	}
	send := func(m Message) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !o.Until.IsZero() && m.At.After(o.Until) {
			return errPast
		}
		if m.At.Before(o.Since) {
			return nil
		}
		return fn(m)
	}
	for _, f := range files {
		if err = f.drain(l.codec, send); err != nil {
			break
		}
	}
	if err == nil && o.Follow {
		if !o.Until.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadlineCause(ctx, o.Until, errPast)
			defer cancel()
		}
		err = l.follow(ctx, files, gen, send)
	}
	if errors.Is(err, errPast) || context.Cause(ctx) == errPast { //nolint:errorlint // a sentinel that is never wrapped
		return nil
	}
	return err
}

// file is one log file that is being read.
type file struct {
	f    *os.File
	z    io.ReadCloser // decompresses f; nil when it is plain
	off  int64         // of the next byte to read, when plain
	skip int           // records still to be left out
	buf  []byte        // what was read and not decoded
	bad  bool          // nothing more can be decoded
}

func (f *file) close() {
	if f.z != nil {
		_ = f.z.Close()
	}
	_ = f.f.Close()
}

// openFile opens the k-th file, compressed or not; nil when there is none.
func (l *Log) openFile(k int) (*file, error) {
	f, err := os.Open(l.name(k))
	if err == nil {
		return &file{f: f}, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if f, err = os.Open(l.name(k) + ".gz"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f: f, z: z}, nil
}

// files opens all, oldest first, as they are between two rotations.
func (l *Log) files() ([]*file, int, error) {
	for {
		l.mu.Lock()
		gen := l.gen
		l.mu.Unlock()
		var all []*file
		for k := l.o.MaxFiles - 1; k >= 0; k-- {
			f, err := l.openFile(k)
			if err != nil {
				for _, f := range all {
					f.close()
				}
				return nil, 0, err
			}
			if f != nil {
				all = append(all, f)
			}
		}
		l.mu.Lock()
		same := gen == l.gen
		l.mu.Unlock()
		if same {
			return all, gen, nil
		}
		for _, f := range all {
			f.close()
		}
	}
}

// seekTail returns the files that have the last n records, each positioned.
func (l *Log) seekTail(files []*file, n int) ([]*file, error) {
	keep := len(files)
	for keep > 0 && n > 0 {
		f := files[keep-1]
		found, err := l.tailOf(f, n)
		if err != nil {
			return files, err
		}
		n -= found
		keep--
	}
	if n > 0 || keep == 0 {
		return files, nil
	}
	// Those before are not wanted; with n == 0 from the start, none is.
	for _, f := range files[:keep] {
		if f == files[len(files)-1] { // the current file is followed from its end
			info, err := f.f.Stat()
			if err != nil {
				return files, err
			}
			f.off = info.Size()
			if f.off, err = l.codec.end(f.f, f.off); err != nil {
				return files, err
			}
			return files[keep-1:], nil
		}
		f.close()
	}
	return files[keep:], nil
}

func (l *Log) tailOf(f *file, n int) (int, error) {
	if f.z == nil {
		info, err := f.f.Stat()
		if err != nil {
			return 0, err
		}
		size, err := l.codec.end(f.f, info.Size())
		if err != nil {
			return 0, err
		}
		off, found, err := l.codec.tail(f.f, size, n)
		f.off = off
		return found, err
	}
	total := 0
	if err := f.drain(l.codec, func(Message) error { total++; return nil }); err != nil {
		return 0, err
	}
	if _, err := f.f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	z, err := gzip.NewReader(f.f)
	if err != nil {
		return 0, err
	}
	f.z, f.buf, f.bad = z, nil, false
	f.skip = max(0, total-n)
	return min(total, n), nil
}

// drain decodes all that is in the file now.
func (f *file) drain(c codec, send func(Message) error) error {
	block := make([]byte, readBlock)
	for !f.bad {
		var n int
		var err error
		if f.z != nil {
			n, err = f.z.Read(block)
		} else {
			n, err = f.f.ReadAt(block, f.off)
			f.off += int64(n)
		}
		f.buf = append(f.buf, block[:n]...)
		if serr := f.decode(c, send); serr != nil {
			return serr
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return err
		}
	}
	return nil
}

func (f *file) decode(c codec, send func(Message) error) error {
	b := f.buf
	for len(b) > 0 {
		m, n, ok := c.next(b)
		if n < 0 || n == 0 && len(b) > maxRecord {
			f.bad = true
			b = nil
			break
		}
		if n == 0 {
			break
		}
		b = b[n:]
		switch {
		case !ok:
		case f.skip > 0:
			f.skip--
		default:
			if err := send(m); err != nil {
				return err
			}
		}
	}
	f.buf = append(f.buf[:0], b...)
	return nil
}

// follow reads on as the log grows. files[last] is the current one of gen.
func (l *Log) follow(ctx context.Context, files []*file, gen int, send func(Message) error) error {
	var cur *file
	if len(files) > 0 {
		cur = files[len(files)-1]
	}
	own := false // cur was opened here
	defer func() {
		if own && cur != nil {
			cur.close()
		}
	}()
	for {
		l.mu.Lock()
		now, open := l.gen, l.f != nil
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		if cur != nil && !(now != gen && l.o.MaxFiles < 2) {
			if err := cur.drain(l.codec, send); err != nil {
				return err
			}
		}
		if cur == nil || now != gen {
			next, at, err := l.after(cur, gen, now)
			if err != nil {
				return err
			}
			if next != nil {
				if own && cur != nil {
					cur.close()
				}
				cur, gen, own = next, at, true
				continue
			}
		}
		if !open {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// after opens the file that follows the one of generation gen, or the oldest
// that is left. It returns nil when a rotation came between; the caller tries
// again.
func (l *Log) after(cur *file, gen, now int) (*file, int, error) {
	at := gen + 1
	if cur == nil {
		at = now
	}
	at = max(at, now-l.o.MaxFiles+1)
	f, err := l.openFile(now - at)
	if f == nil || err != nil {
		return nil, 0, err
	}
	l.mu.Lock()
	same := l.gen == now
	l.mu.Unlock()
	if !same {
		f.close()
		return nil, 0, nil
	}
	return f, at, nil
}
