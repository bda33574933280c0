package templates

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"text/template"

	"github.com/legion-swarm/legion/api"
)

// Driver is the only one that there is for templates in secrets and configs: Go's
// text/template.
const Driver = "golang"

// Files is what templates in secrets and configs can also read. Each returns
// false for what the task does not have.
type Files struct {
	// Secret and Config find the task's secrets and configs by their target or
	// name, as they were created: a template in them is not filled in.
	Secret, Config func(name string) (string, bool)
	// Env are the task's variables.
	Env []string
}

func (f *Files) functions() template.FuncMap {
	find := func(kind string, get func(string) (string, bool)) func(string) (string, error) {
		return func(name string) (string, error) {
			if s, ok := get(name); ok {
				return s, nil
			}
			return "", fmt.Errorf("%s target %s not found: the service does not use it", kind, name)
		}
	}
	return template.FuncMap{
		"secret": find("secret", f.Secret), "config": find("config", f.Config),
		"env": func(name string) string {
			for _, e := range f.Env {
				if k, v, ok := strings.Cut(e, "="); ok && k == name {
					return v
				}
			}
			return ""
		},
	}
}

// Payload fills in the data of a secret or config; what comes of it is at most
// limit bytes. Invalid: it is bad; the error does not have the text in it. The
// error is the context's if it ended.
func (v *Values) Payload(ctx context.Context, data []byte, limit int, f *Files) ([]byte, error) {
	p, err := parseText(ctx, string(data), limit, f.functions())
	if err != nil {
		return nil, veiled(err)
	}
	out, err := p.execute(v)
	if err != nil {
		return nil, veiled(err)
	}
	return []byte(out), nil
}

// veiled takes the pieces of the template out of an error that anyone can read.
func veiled(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	text := regexp.MustCompile(`(?s)( executing "[^"]*" at|) <.*>: `).ReplaceAllString(reason(err), " ")
	return api.Errorf(api.Invalid, "bad template: %s", text)
}

// CheckPayload refuses templates that no task could have: those that can't be
// parsed, name what there is not, or take too much whatever the task. What
// depends on the task is found out when it comes.
func CheckPayload(ctx context.Context, data []byte, limit int) error {
	anything := func(string) (string, bool) { return "", true }
	p, err := parseText(ctx, string(data), limit, (&Files{Secret: anything, Config: anything}).functions())
	if err == nil {
		_, err = p.execute(&Values{Task: Task{Slot: "1"}})
		if !errors.Is(err, errSteps) && !errors.Is(err, errWork) && ctx.Err() == nil {
			return nil
		}
	}
	return api.Errorf(api.Invalid, "bad template: %s", reason(err))
}
