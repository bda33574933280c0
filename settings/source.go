package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/legion-swarm/legion/api"
)

// maxFile bounds the configuration file, in bytes.
const maxFile = 1 << 20

// anything accepts every JSON value, for options that are not looked at.
type anything struct{}

func (anything) Type() string                  { return "string" }
func (anything) String() string                { return "" }
func (anything) Set(string) error              { return nil }
func (anything) setJSON(json.RawMessage) error { return nil }

// Source is where settings come from: flags, parsed by their flag set, and a
// file. Not for concurrent use.
type Source struct {
	flags   *pflag.FlagSet
	options []option
	fromCLI Daemon
}

// NewSource adds the daemon's flags to the set. Call Daemon after it was
// parsed, as often as the file changes.
func NewSource(flags *pflag.FlagSet) *Source {
	s := &Source{flags: flags, options: options(), fromCLI: defaults()}
	for _, o := range s.options {
		if o.fileOnly {
			continue
		}
		f := flags.VarPF(o.bind(&s.fromCLI), o.flag, o.short, o.usage)
		if f.Value.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
		f.Hidden = o.refusal != ""
	}
	return s
}

// Daemon merges flags and the file's content into valid settings. An empty file
// is fine. notes are sentences about what was given and has no effect. The
// error is of class api.Invalid and names what is wrong.
func (s *Source) Daemon(file []byte) (d *Daemon, notes []string, err error) {
	d = new(Daemon)
	*d = s.fromCLI
	keys, err := readFile(file)
	if err != nil {
		return nil, nil, err
	}
	if err := s.merge(d, keys); err != nil {
		return nil, nil, err
	}
	_, groupKey := keys["group"]
	d.GroupSet = groupKey || s.flags.Changed("group")
	for _, o := range s.options {
		_, inFile := keys[o.fileKey()]
		if (!inFile || o.flagOnly) && (o.fileOnly || !s.flags.Changed(o.flag)) {
			continue
		}
		name := "--" + o.flag
		if inFile {
			name = fmt.Sprintf("%q", o.fileKey())
		}
		switch {
		case o.refusal != "":
			return nil, nil, api.Errorf(api.Invalid, "%s is not supported by Legion: %s", name, o.refusal)
		case o.note != "":
			notes = append(notes, fmt.Sprintf("%s has no effect: %s", name, o.note))
		}
	}
	if !d.LiveRestore {
		notes = append(notes, "live-restore=false has no effect: containers always outlive the daemon")
	}
	d.complete()
	if err := d.validate(); err != nil {
		return nil, nil, api.Errorf(api.Invalid, "%w", err)
	}
	return d, notes, nil
}

// merge writes the file's keys over the flags' settings, where they don't meet.
func (s *Source) merge(d *Daemon, keys map[string]json.RawMessage) error {
	known := map[string]option{}
	for _, o := range s.options {
		if !o.flagOnly {
			known[o.fileKey()] = o
		}
	}
	var unknown, both []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		o, ok := known[k]
		switch {
		case !ok:
			unknown = append(unknown, k)
		case !o.fileOnly && s.flags.Changed(o.flag):
			both = append(both, fmt.Sprintf("%s: (from flag: %s, from file: %s)", k, s.flags.Lookup(o.flag).Value, compact(keys[k])))
		}
	}
	// Docker's words, which its users search for.
	if len(unknown) > 0 {
		return api.Errorf(api.Invalid, "the following directives don't match any configuration option: %s", strings.Join(unknown, ", "))
	}
	if len(both) > 0 {
		return api.Errorf(api.Invalid, "the following directives are specified both as a flag and in the configuration file: %s", strings.Join(both, ", "))
	}
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if err := known[k].bind(d).setJSON(keys[k]); err != nil {
			errs = append(errs, api.Errorf(api.Invalid, "%q: %w", k, err))
		}
	}
	return errors.Join(errs...)
}

// readFile returns the file's keys, with those of "proxies", an object of its
// own in dockerd's file, beside the others.
func readFile(file []byte) (map[string]json.RawMessage, error) {
	if len(file) > maxFile {
		return nil, api.Errorf(api.Invalid, "the file is larger than %d bytes", maxFile)
	}
	file = bytes.TrimPrefix(file, []byte("\xef\xbb\xbf"))
	keys := map[string]json.RawMessage{}
	if len(bytes.TrimSpace(file)) == 0 {
		return keys, nil
	}
	if first := bytes.TrimSpace(file)[0]; first != '{' {
		return nil, api.Errorf(api.Invalid, "not a JSON object of options: it begins with %q", first)
	}
	d := json.NewDecoder(bytes.NewReader(file))
	if err := d.Decode(&keys); err != nil {
		return nil, api.Errorf(api.Invalid, "not a JSON object of options: %w%s", err, position(file, err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, api.Errorf(api.Invalid, "something follows the JSON object, after byte %d", d.InputOffset())
	}
	if raw, ok := keys["proxies"]; ok {
		proxies := map[string]json.RawMessage{}
		if err := json.Unmarshal(raw, &proxies); err != nil {
			return nil, api.Errorf(api.Invalid, "\"proxies\": want an object, not %s", raw)
		}
		delete(keys, "proxies")
		maps.Copy(keys, proxies)
	}
	for k, v := range keys {
		if string(v) == "null" {
			delete(keys, k)
		}
	}
	return keys, nil
}

// position says where in the file a syntax error is.
func position(file []byte, err error) string {
	before := file
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		before = file[:min(int(syntax.Offset), len(file))]
	}
	return fmt.Sprintf(" (line %d)", 1+bytes.Count(before, []byte("\n")))
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return strings.Trim(b.String(), `"`)
}
