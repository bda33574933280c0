package linux

import (
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// setting is one of the kernel's settings, open.
type setting struct {
	fd   int
	path string
}

func openSetting(dir int, path string, flags int) (setting, error) {
	fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return setting{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return setting{fd, path}, nil
}

func (s setting) close() { _ = unix.Close(s.fd) }

func (s setting) write(value string) error {
	if _, err := unix.Pwrite(s.fd, []byte(value), 0); err != nil {
		return &fs.PathError{Op: "write", Path: s.path, Err: err}
	}
	return nil
}

// read returns a value, which is short.
func (s setting) read() (string, error) {
	var buf [64]byte
	n, err := unix.Pread(s.fd, buf[:], 0)
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: s.path, Err: err}
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// writeSysctl sets one of the kernel's settings, of the thread's namespace.
func writeSysctl(path, value string) error {
	s, err := openSetting(unix.AT_FDCWD, path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer s.close()
	return s.write(value)
}

// ipv4Settings are those in /proc/sys/net/ipv4 of the namespace that the thread was
// in. To find that folder takes the kernel the longer the more namespaces there are,
// so it is found once.
type ipv4Settings struct{ dir setting }

func openIPv4Settings() (ipv4Settings, error) {
	dir, err := openSetting(unix.AT_FDCWD, "/proc/sys/net/ipv4", unix.O_PATH|unix.O_DIRECTORY)
	return ipv4Settings{dir}, err
}

func (s ipv4Settings) close() { s.dir.close() }

func (s ipv4Settings) write(file, value string) error {
	f, err := openSetting(s.dir.fd, file, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.close()
	return f.write(value)
}
