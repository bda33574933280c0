package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// shown is a machine as `inspect` shows it: what its record has, and what
// docker-machine's documentation takes out of it, where it has that.
type shown struct {
	Record

	Dir, Address, URL string

	// DriverName is what Record calls Driver.
	DriverName string
	Driver     struct {
		IPAddress, MachineName, StorePath string
	}
	HostOptions struct{ EngineOptions engineOptions }
}

// engineOptions are Engine, as the flags of create gave them.
type engineOptions struct {
	ArbitraryFlags, Env, InsecureRegistry, Labels, RegistryMirror []string
}

// Inspect writes a machine's record as JSON, or by a Go template.
func Inspect(w io.Writer, m *Machine, e Endpoint, address, format string) error {
	v := shown{Record: m.Record, Dir: m.Dir, Address: address, URL: e.URL, DriverName: m.Record.Driver}
	v.Driver.IPAddress, v.Driver.MachineName, v.Driver.StorePath = address, m.Name, m.Dir
	v.HostOptions.EngineOptions = m.Engine.options()
	if format == "" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "    ")
		return enc.Encode(v)
	}
	t, err := parseFormat(format)
	if err != nil {
		return err
	}
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

// values are those that the flags give to one of the daemon's.
func (e Engine) values(flag string) []string {
	values := []string{}
	for _, f := range e.Flags {
		if v, ok := strings.CutPrefix(f, "--"+flag+"="); ok {
			values = append(values, v)
		}
	}
	return values
}

func (e Engine) options() engineOptions {
	o := engineOptions{
		ArbitraryFlags: []string{}, Env: append([]string{}, e.Env...),
		InsecureRegistry: e.values("insecure-registry"), Labels: e.values("label"), RegistryMirror: e.values("registry-mirror"),
	}
	for _, f := range e.Flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if !slices.Contains([]string{"insecure-registry", "label", "registry-mirror"}, name) {
			o.ArbitraryFlags = append(o.ArbitraryFlags, strings.TrimPrefix(f, "--"))
		}
	}
	return o
}
