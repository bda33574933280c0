package local

import (
	"errors"
	"io"
	"os"
)

// maxLog is how long a log may get before it becomes the old one, which
// replaces the one before.
const maxLog = 8 << 20

// newLog returns a pipe whose contents are appended to the file at path, which
// is kept within bounds. It ends with the process.
func newLog(path string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, err := openLog(path)
	if err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	go func() { _, _ = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{r}, make([]byte, 16<<10)) }()
	return w, nil
}

// rotating is a file that is renamed to its name with ".1" when it is full.
type rotating struct {
	path string
	file *os.File
	size int64
}

func openLog(path string) (*rotating, error) {
	l := &rotating{path: path}
	return l, l.open()
}

func (l *rotating) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write never fails: what can't be written, as on a full disk, is lost. The
// daemon must not be stopped by its log.
func (l *rotating) Write(b []byte) (int, error) {
	if l.size+int64(len(b)) > maxLog {
		_ = l.file.Close()
		_ = os.Rename(l.path, l.path+".1")
		if err := l.open(); err != nil {
			l.file, l.size = os.Stderr, 0
		}
	}
	n, _ := l.file.Write(b)
	l.size += int64(n)
	return len(b), nil
}
