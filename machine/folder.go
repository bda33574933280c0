package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/atomicwriter"
)

const (
	configFile  = "config.json"
	maxConfig   = 1 << 20 // bytes
	machinesDir = "machines"
	locksDir    = "locks"
)

// ErrNotFound is wrapped by errors that name a machine that is not there.
var ErrNotFound = errors.New("does not exist")

// folder is where the records are: DIR/machines/NAME/config.json.
type folder struct{ dir string }

func (f folder) machine(name string) string { return filepath.Join(f.dir, machinesDir, name) }

func (f folder) load(name string) (Record, error) {
	var r Record
	if err := ValidateName(name); err != nil {
		return r, err
	}
	path := filepath.Join(f.machine(name), configFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("machine %q %w (see: legion machine ls)", name, ErrNotFound)
	}
	if err != nil {
		return r, err
	}
	if info.Size() > maxConfig {
		return r, fmt.Errorf("%s is larger than %d bytes: it is no record of a machine", path, maxConfig)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Format > formatVersion {
		return r, fmt.Errorf("%s has format %d, and this program knows %d: use a newer one", path, r.Format, formatVersion)
	}
	if r.Name != name {
		return r, fmt.Errorf("%s is the record of %q: was the folder renamed?", path, r.Name)
	}
	return r, nil
}

func (f folder) save(r Record) error {
	r.Format = formatVersion
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return atomicwriter.WriteFile(filepath.Join(f.machine(r.Name), configFile), append(b, '\n'), 0o600)
}

// names of all machines, sorted.
func (f folder) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(f.dir, machinesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// make makes the machine's folder, which must not be there.
func (f folder) make(name string) error {
	for {
		if err := os.MkdirAll(filepath.Join(f.dir, machinesDir), 0o711); err != nil {
			return err
		}
		err := os.Mkdir(f.machine(name), 0o711)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another command has just tidied up
		}
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("machine %q already exists", name)
		}
		return err
	}
}

// remove removes the machine's folder.
func (f folder) remove(name string) error {
	err := os.RemoveAll(f.machine(name))
	f.tidy()
	return err
}

// tidy removes the folders that are empty.
func (f folder) tidy() {
	for _, dir := range []string{filepath.Join(f.dir, machinesDir), filepath.Join(f.dir, locksDir), f.dir} {
		_ = os.Remove(dir)
	}
}
