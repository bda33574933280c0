// Package disk is the seam between the log and the files that it is in: the
// operating system's, or those that package disktest keeps in memory.
package disk

import (
	"errors"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// FS is the part of a file system that the log needs. Tests inject faults here.
// Names are whole paths.
type FS interface {
	// OpenFile is os.OpenFile. With Direct only WriteAt and Datasync are used.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// ReadDir returns the names in a folder.
	ReadDir(dir string) ([]string, error)
	MkdirAll(dir string, perm fs.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes renames, creations and removals in the folder durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock until the closer is closed or the process
	// ends; ErrLocked if another process has it.
	Lock(name string) (io.Closer, error)
}

// Direct is a flag of OpenFile for a file that is written in whole blocks of 4 KiB,
// from memory at such an address, at such an offset: it may be written past
// the page cache, if there is a way.
const Direct = unix.O_DIRECT

// File is an open file.
type File interface {
	io.Reader
	io.Writer
	io.WriterAt
	io.Closer
	// Sync makes data and size durable.
	Sync() error
	// Datasync makes data durable that was written to space that the file had
	// already.
	Datasync() error
	Size() (int64, error)
}

// ErrLocked means that another process uses the folder.
var ErrLocked = errors.New("in use by another process")
