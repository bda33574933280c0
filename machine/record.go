package machine

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"time"
)

// State of a machine, as `ls` and `status` say it.
type State string

// The states. StateError is that of a machine that create did not finish, or
// whose driver can't tell.
const (
	StateRunning State = "Running"
	StateStopped State = "Stopped"
	StateError   State = "Error"
	StateTimeout State = "Timeout"
)

// formatVersion is that of config.json. A newer one is refused.
const formatVersion = 1

// Record is what is kept of a machine, as config.json in its folder. Only
// Fleet writes it.
type Record struct {
	// Format is the version of this layout.
	Format int
	// Name is unique and the machine's host name.
	Name string
	// Driver is the name of the driver that made it.
	Driver string
	// Created is when create began.
	Created time.Time
	// Made is false until create has finished.
	Made bool
	// Engine is how its daemon is started.
	Engine Engine
	// Options are the driver's own, as given to create.
	Options json.RawMessage `json:",omitempty"`
}

// Engine is how a machine's daemon is started, beyond what the driver needs.
type Engine struct {
	// Flags are the daemon's, as "--label=rack=1".
	Flags []string `json:",omitempty"`
	// Env are variables of its environment, as "NAME=value".
	Env []string `json:",omitempty"`
}

// Machine is a record and where it lies.
type Machine struct {
	Record

	// Dir is the machine's folder; the driver may keep its files in it.
	Dir string
	// Say tells the user of a step.
	Say func(format string, args ...any)
}

func (m *Machine) name() string { return m.Name }

// Path is a file in the machine's folder.
func (m *Machine) Path(name string) string { return filepath.Join(m.Dir, name) }

// DecodeOptions reads the driver's own options.
func (m *Machine) DecodeOptions(to any) error {
	if len(m.Options) == 0 {
		return nil
	}
	if err := json.Unmarshal(m.Options, to); err != nil {
		return fmt.Errorf("options of driver %s in %s: %w", m.Driver, m.Path(configFile), err)
	}
	return nil
}

// maxName is that of a host name's label.
const maxName = 63

// ValidateName refuses what can't be a host name and a folder.
func ValidateName(name string) error {
	if len(name) > maxName || !regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?$`).MatchString(name) {
		return fmt.Errorf("invalid machine name %q: want at most %d letters, digits, dots and hyphens, the first and last a letter or digit", name, maxName)
	}
	return nil
}
