package bundle

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxProgram bounds what one program may unpack to.
const maxProgram = 256 << 20

// program is a line of SUMS, which scripts/build-bundle writes.
type program struct{ sum, version, name string }

func readSums(f fs.FS) ([]program, string, error) {
	data, err := fs.ReadFile(f, "SUMS")
	if err != nil {
		return nil, "", fmt.Errorf("bundle: this binary was built with the tag bundle, but scripts/build-bundle had not run: %w", err)
	}
	var list []program
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) != 3 || len(w[0]) != 2*sha256.Size || filepath.Base(w[2]) != w[2] {
			return nil, "", fmt.Errorf("bundle: malformed line in SUMS: %q", s.Text())
		}
		list = append(list, program{w[0], w[1], w[2]})
	}
	sum := sha256.Sum256(data)
	return list, hex.EncodeToString(sum[:8]), nil
}

// unpack writes the programs to a folder below dir that is named after their
// sums, unless they are there unharmed. Folders of other versions stay: shims
// that still run use the runc beside them.
func unpack(f fs.FS, dir string) (*Programs, error) {
	list, hash, err := readSums(f)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	final := filepath.Join(dir, hash)
	if err := verify(final, list); err != nil {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDamaged) {
			return nil, err
		}
		if err := write(f, dir, final, list); err != nil {
			return nil, fmt.Errorf("bundle: unpack to %s: %w", final, err)
		}
	}
	p := &Programs{
		Runc: filepath.Join(final, Runc), Shim: filepath.Join(final, Shim), Init: filepath.Join(final, Init),
		Own: true, versions: make(map[string]string),
	}
	for _, prog := range list {
		p.versions[prog.name] = prog.version
	}
	for _, name := range []string{Runc, Shim, Init} {
		if p.versions[name] == "" {
			return nil, fmt.Errorf("bundle: this binary was built without %s; run scripts/build-bundle and build it again", name)
		}
	}
	return p, nil
}

var errDamaged = errors.New("damaged")

// verify checks the sums of all programs in dir.
func verify(dir string, list []program) error {
	for _, p := range list {
		path := filepath.Join(dir, p.name)
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		if hex.EncodeToString(h.Sum(nil)) != p.sum {
			return fmt.Errorf("%s: %w", path, errDamaged)
		}
	}
	return nil
}

// write unpacks to a temporary folder and puts it in place of final.
func write(f fs.FS, dir, final string, list []program) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for _, p := range list {
		if err := writeOne(f, filepath.Join(tmp, p.name), p); err != nil {
			return err
		}
	}
	if err := verify(tmp, list); err != nil {
		return err
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeOne(f fs.FS, path string, p program) (err error) {
	src, err := f.Open(p.name + ".zst")
	if err != nil {
		return err
	}
	defer src.Close()
	z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	n, err := io.Copy(dst, io.LimitReader(z, maxProgram+1))
	if err != nil {
		return err
	}
	if n > maxProgram {
		return fmt.Errorf("%s is larger than %d bytes", p.name, maxProgram)
	}
	return dst.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
