package templates

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"text/template"

	"github.com/legion-swarm/legion/api"
)

// expansion fills in texts with one set of values.
type expansion struct {
	ctx    context.Context //nolint:containedctx // of one expansion
	values *Values
}

// parsed is a template that may be carried out.
type parsed struct {
	t     *template.Template
	meter *meter
}

func parseOnly(text string, funcs template.FuncMap) (*template.Template, error) {
	return template.New("text").Option("missingkey=error").Funcs(funcs).Parse(text)
}

func parseText(ctx context.Context, text string, limit int, funcs template.FuncMap) (*parsed, error) {
	m := &meter{ctx: ctx, limit: limit}
	all := m.functions()
	maps.Copy(all, funcs)
	t, err := parseOnly(text, all)
	if err != nil {
		return nil, err
	}
	if _, err := inspect(t); err != nil {
		return nil, err
	}
	return &parsed{t: t, meter: m}, nil
}

func (p *parsed) execute(v *Values) (string, error) {
	if p.t.Tree == nil { // all of it is definitions
		return "", nil
	}
	instrument(p.t)
	if err := p.t.Execute(p.meter, v); err != nil {
		return "", err
	}
	return p.meter.out.String(), nil
}

// text fills in a text that Docker expands: all that is in braces is ours.
func (e *expansion) text(field, text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	if len(text) > maxText {
		return "", refuse(field, errWork)
	}
	p, err := parseText(e.ctx, text, maxText, nil)
	if err != nil {
		return "", refuse(field, err)
	}
	out, err := p.execute(e.values)
	if err != nil {
		return "", refuse(field, err)
	}
	return out, nil
}

// ours fills in a text that Docker leaves as it is. Where it does not name
// anything of a service, node or task, it may be in the language of another
// program, and stays.
func (e *expansion) ours(field, text string) (string, error) {
	if !strings.Contains(text, "{{") || !mentions(text) {
		return text, nil
	}
	if t, err := parseOnly(text, (&meter{}).functions()); err == nil {
		if named, _ := inspect(t); !named {
			return text, nil
		}
	}
	out, err := e.text(field, text)
	if err != nil {
		return "", api.Errorf(api.Invalid, "%w; if this is not meant for the swarm, the service's label %s=%s leaves it as it is", err, api.TemplatesLabel, api.TemplatesDocker)
	}
	return out, nil
}

// mentions reports whether a text could name something of Values.
func mentions(text string) bool {
	for _, w := range []string{".Service.", ".Node.", ".Task."} {
		if strings.Contains(text, w) {
			return true
		}
	}
	return false
}

// each fills in a list; the result is a copy if anything changed.
func each(in []string, field func(i int) string, f func(field, text string) (string, error)) ([]string, error) {
	out, changed := in, false
	for i, s := range in {
		n, err := f(field(i), s)
		if err != nil {
			return nil, err
		}
		if n == s {
			continue
		}
		if !changed {
			out, changed = slices.Clone(in), true
		}
		out[i] = n
	}
	return out, nil
}

// values fills in a map's values; the result is a copy if anything changed.
func values(in map[string]string, field string, f func(field, text string) (string, error)) (map[string]string, error) {
	var out map[string]string
	for k, s := range in {
		n, err := f(field+"["+k+"]", s)
		if err != nil {
			return nil, err
		}
		if n == s {
			continue
		}
		if out == nil {
			out = maps.Clone(in)
		}
		out[k] = n
	}
	if out == nil {
		return in, nil
	}
	return out, nil
}

// refuse says where a template is bad, and why.
func refuse(field string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return api.Errorf(api.Invalid, "%s: bad template: %s", field, reason(err))
}

// reason is the error without the name that it gives to the text.
func reason(err error) string {
	return strings.Replace(strings.TrimPrefix(err.Error(), "template: text:"), `executing "text" at `, "", 1)
}
