package logfile

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"github.com/legion-swarm/legion/api"
)

// The drivers.
const (
	JSONFile = "json-file"
	Local    = "local"
	None     = "none"
)

// Drivers lists the names that Parse knows, sorted.
func Drivers() []string { return []string{JSONFile, Local, None} }

const (
	defaultLocalSize  = 20 << 20
	defaultLocalFiles = 5
	maxFiles          = 10_000
	maxBuffer         = 1 << 30
	defaultBuffer     = 1 << 20
)

// Options is a validated log configuration.
type Options struct {
	Driver string
	// MaxSize is the size in bytes at which a file is rotated; 0: never.
	MaxSize int64
	// MaxFiles is how many files there are at most, the current one included.
	MaxFiles int
	// Compress gzips rotated files.
	Compress bool
	// Buffer is how many bytes wait in memory before output is dropped, so that
	// a slow disk does not block the container; 0: it blocks.
	Buffer int64
	// Tag is a template for the attribute "tag"; empty: none.
	Tag string

	labels, env     []string
	labelsRe, envRe *regexp.Regexp
}

// Parse validates a driver's name and options. An unknown one is Invalid.
func Parse(driver string, opts map[string]string) (*Options, error) {
	o := &Options{Driver: driver, MaxFiles: 1}
	known := []string{"mode", "max-buffer-size"}
	switch driver {
	case JSONFile:
		known = append(known, "max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag")
	case Local:
		o.MaxSize, o.MaxFiles, o.Compress = defaultLocalSize, defaultLocalFiles, true
		known = append(known, "max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag")
	case None:
	default:
		return nil, api.Errorf(api.Invalid, "logger: no log driver named '%s' is registered (there are %s)", driver, strings.Join(Drivers(), ", "))
	}
	for _, k := range slices.Sorted(maps.Keys(opts)) {
		if !slices.Contains(known, k) {
			return nil, api.Errorf(api.Invalid, "unknown log opt '%s' for %s log driver (known are %s)", k, driver, strings.Join(known, ", "))
		}
	}
	if err := o.sizes(driver, opts); err != nil {
		return nil, err
	}
	if err := o.buffering(opts); err != nil {
		return nil, err
	}
	return o, o.attributes(opts)
}

func (o *Options) sizes(driver string, opts map[string]string) (err error) {
	if s, ok := opts["max-size"]; ok && s != "-1" {
		if o.MaxSize, err = units.FromHumanSize(s); err != nil || o.MaxSize <= 0 {
			return api.Errorf(api.Invalid, "log opt max-size: %q is not a positive size such as 10m", s)
		}
	} else if ok {
		o.MaxSize = 0
	}
	if s, ok := opts["max-file"]; ok {
		if o.MaxFiles, err = strconv.Atoi(s); err != nil || o.MaxFiles < 1 || o.MaxFiles > maxFiles {
			return api.Errorf(api.Invalid, "log opt max-file: %q must be a number from 1 to %d", s, maxFiles)
		}
	}
	if s, ok := opts["compress"]; ok {
		if o.Compress, err = strconv.ParseBool(s); err != nil {
			return api.Errorf(api.Invalid, "log opt compress: %q is neither true nor false", s)
		}
		if o.Compress && driver == JSONFile && (o.MaxFiles < 2 || o.MaxSize == 0) {
			return api.Errorf(api.Invalid, "log opt compress cannot be true when max-file is less than 2 or max-size is not set")
		}
	}
	return nil
}

func (o *Options) buffering(opts map[string]string) (err error) {
	switch mode := opts["mode"]; mode {
	case "", "blocking":
		if _, ok := opts["max-buffer-size"]; ok {
			return api.Errorf(api.Invalid, "logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
	case "non-blocking":
		o.Buffer = defaultBuffer
		if s, ok := opts["max-buffer-size"]; ok {
			if o.Buffer, err = units.RAMInBytes(s); err != nil || o.Buffer <= 0 || o.Buffer > maxBuffer {
				return api.Errorf(api.Invalid, "log opt max-buffer-size: %q is not a size up to 1g", s)
			}
		}
	default:
		return api.Errorf(api.Invalid, "logger: logging mode not supported: %s (known are blocking, non-blocking)", mode)
	}
	return nil
}

func (o *Options) attributes(opts map[string]string) (err error) {
	list := func(s string) []string {
		if s == "" {
			return nil
		}
		return strings.Split(s, ",")
	}
	o.Tag, o.labels, o.env = opts["tag"], list(opts["labels"]), list(opts["env"])
	for k, re := range map[string]**regexp.Regexp{"labels-regex": &o.labelsRe, "env-regex": &o.envRe} {
		if s := opts[k]; s != "" {
			if *re, err = regexp.Compile(s); err != nil {
				return api.Errorf(api.Invalid, "log opt %s: %w", k, err)
			}
		}
	}
	return nil
}

// Attributes picks what --details shows out of a container's labels and
// environment. It does not add the tag.
func (o *Options) Attributes(labels map[string]string, env []string) map[string]string {
	a := map[string]string{}
	pick := func(from map[string]string, names []string, re *regexp.Regexp) {
		for _, n := range names {
			if v, ok := from[n]; ok {
				a[n] = v
			}
		}
		for k, v := range from {
			if re != nil && re.MatchString(k) {
				a[k] = v
			}
		}
	}
	pick(labels, o.labels, o.labelsRe)
	if len(o.env) > 0 || o.envRe != nil {
		vars := make(map[string]string, len(env))
		for _, e := range env {
			if k, v, ok := strings.Cut(e, "="); ok {
				vars[k] = v
			}
		}
		pick(vars, o.env, o.envRe)
	}
	if len(a) == 0 {
		return nil
	}
	return a
}
