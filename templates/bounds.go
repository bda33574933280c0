package templates

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"text/template"
)

const (
	// maxSteps bounds how many actions and pieces of text are carried out.
	maxSteps = 100_000
	// maxWork bounds how many bytes functions may make in all.
	maxWork = 64 << 20
	// maxText is how long a template in a service may be, and what comes of it:
	// Linux's limit for one argument or variable.
	maxText = 128 << 10
	// maxWidth bounds widths and precisions in printf.
	maxWidth = 999
	// growth is by how much escaping makes text longer at most.
	growth = 6
)

var (
	errSteps = errors.New("it takes more than 100000 steps: does it loop?")
	errWork  = errors.New("it makes too much text")
)

// meter is where a template writes to. It counts steps, because every step
// writes something, if only nothing; see instrument.
type meter struct {
	ctx   context.Context //nolint:containedctx // of one execution
	out   bytes.Buffer
	limit int // of out, in bytes
	steps int
	work  int
}

func (m *meter) Write(p []byte) (int, error) {
	if m.steps++; m.steps > maxSteps {
		return 0, errSteps
	}
	if err := m.ctx.Err(); err != nil {
		return 0, err
	}
	if m.out.Len()+len(p) > m.limit {
		return 0, fmt.Errorf("%w: more than %d bytes", errWork, m.limit)
	}
	return m.out.Write(p)
}

func (m *meter) charge(n int) error {
	if n < 0 || m.work+n > maxWork {
		return errWork
	}
	m.work += n
	return nil
}

// charged wraps a function that makes text of its arguments.
func (m *meter) charged(f func(...any) string) func(...any) (string, error) {
	return func(args ...any) (string, error) {
		n := 0
		for _, a := range args {
			n += size(a) + 1
		}
		if err := m.charge(growth * n); err != nil {
			return "", err
		}
		return f(args...), nil
	}
}

func size(a any) int {
	if s, ok := a.(string); ok {
		return len(s)
	}
	return len(fmt.Sprint(a)) // of numbers, and of what Values has
}

// printf refuses what would make far more text than it was given.
func (m *meter) printf(format string, args ...any) (string, error) {
	largest, digits, verbs := 0, 0, 0
	for _, a := range args {
		largest = max(largest, size(a))
	}
	for i := range len(format) {
		switch c := format[i]; {
		case c == '%':
			verbs++
			digits = 0
		case c == '*':
			return "", errors.New("printf: a width can't be an argument")
		case c >= '0' && c <= '9':
			if digits++; verbs > 0 && digits > len("999") && isWidth(format[:i]) {
				return "", fmt.Errorf("printf: a width above %d", maxWidth)
			}
		default:
			digits = 0
		}
	}
	if err := m.charge(len(format) + verbs*(growth*largest+2*maxWidth+32)); err != nil {
		return "", err
	}
	return fmt.Sprintf(format, args...), nil
}

// isWidth reports whether the end of the text is inside a verb.
func isWidth(s string) bool {
	s = strings.TrimRight(s, "+-# 0123456789.[]")
	return strings.HasSuffix(s, "%")
}

// functions are those that templates have: Go's, bounded, and SwarmKit's join.
func (m *meter) functions() template.FuncMap {
	return template.FuncMap{
		"print": m.charged(fmt.Sprint), "println": m.charged(fmt.Sprintln), "printf": m.printf,
		"html": m.charged(template.HTMLEscaper), "js": m.charged(template.JSEscaper), "urlquery": m.charged(template.URLQueryEscaper),
		"join": m.join,
	}
}

// join takes the separator first.
func (m *meter) join(words ...string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("join: want a separator")
	}
	n := len(words) * len(words[0])
	for _, w := range words[1:] {
		n += len(w)
	}
	if err := m.charge(n); err != nil {
		return "", err
	}
	return strings.Join(words[1:], words[0]), nil
}
