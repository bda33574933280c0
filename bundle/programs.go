package bundle

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The programs' names.
const (
	Runc = "runc"
	Shim = "containerd-shim-runc-v2"
	Init = "legion-init"
)

// Programs are absolute paths.
type Programs struct {
	Runc, Shim string
	// Init is empty when it was not found: then containers can't be given one.
	Init string
	// Own tells that they came with this binary. Only that shim is made to
	// hold many containers: see ContainersPerShim.
	Own bool

	versions map[string]string
}

// ContainersPerShim is how many containers may share one of the shim's
// processes. A stock shim stalls for seconds when more than 32 processes of
// its containers end together.
func (p *Programs) ContainersPerShim() int {
	if p.Own {
		return 64
	}
	return 12
}

// Open returns the programs that this binary carries, unpacked below dir; or,
// if it carries none, those beside its own file (or in a folder "bundle"
// there) and then those in PATH. The error names what is missing and how to
// get it.
func Open(dir string) (*Programs, error) {
	if f := embedded(); f != nil {
		return unpack(f, dir)
	}
	return find(searchPath())
}

func searchPath() []string {
	var dirs []string
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			dirs = append(dirs, filepath.Dir(self), filepath.Join(filepath.Dir(self), "bundle"))
		}
	}
	return append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
}

func find(dirs []string) (*Programs, error) {
	p := &Programs{Runc: look(dirs, Runc), Shim: look(dirs, Shim), Init: look(dirs, Init)}
	p.Own = p.Shim != "" && p.Init != "" && filepath.Dir(p.Shim) == filepath.Dir(p.Init)
	var missing []string
	if p.Runc == "" {
		missing = append(missing, Runc)
	}
	if p.Shim == "" {
		missing = append(missing, Shim)
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("bundle: %s not found: this binary was built without the programs that run containers, and they are not beside it or in PATH either; "+
			"build with `make`, which puts them in, or install them (Debian: apt-get install runc containerd)", strings.Join(missing, " and "))
	}
	return p, nil
}

func look(dirs []string, name string) string {
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			continue
		}
		path := filepath.Join(d, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// Versions returns each program's version by name, for `legion version`.
// Programs that this binary does not carry are executed for it, with ctx.
func (p *Programs) Versions(ctx context.Context) map[string]string {
	if p.versions != nil {
		return p.versions
	}
	v := make(map[string]string)
	if s, err := versionOf(ctx, p.Runc, "--version"); err == nil {
		v[Runc] = s
	}
	if s, err := versionOf(ctx, p.Shim, "-v"); err == nil {
		v[Shim] = s
	}
	return v
}

func versionOf(ctx context.Context, path, flag string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, flag).Output()
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?i)version:?\s+v?(\S+)`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("bundle: %s %s says no version: %.80q", path, flag, bytes.TrimSpace(out))
	}
	return string(m[1]), nil
}
