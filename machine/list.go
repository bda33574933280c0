package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"
)

// Row is a machine as `ls` shows it; the names are docker-machine's, for
// --format.
type Row struct {
	Name, DriverName string
	// Active is "*" for the machine that the environment points at, "-" for others.
	Active        string
	State         State
	URL           string
	Swarm         string
	DockerVersion string
	Error         string
	ResponseTime  time.Duration

	labels []string // those of the daemon, as NAME=VALUE
}

// Driver is the name by which docker-machine's documentation calls DriverName.
func (r Row) Driver() string { return r.DriverName }

// List looks at all machines at once, at most the timeout long at each.
func (f *Fleet) List(ctx context.Context, host string, timeout time.Duration) ([]Row, error) {
	names, err := f.Names()
	if err != nil {
		return nil, err
	}
	rows := make(map[string]*Row, len(names))
	for _, n := range names {
		rows[n] = &Row{Name: n, Active: "-"}
	}
	_ = each(names, itself, func(name string) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		began := f.cfg.Now()
		f.look(ctx, rows[name], host)
		rows[name].ResponseTime = f.cfg.Now().Sub(began)
		return nil
	})
	list := make([]Row, 0, len(names))
	for _, n := range names {
		list = append(list, *rows[n])
	}
	return list, ctx.Err()
}

func (f *Fleet) look(ctx context.Context, r *Row, host string) {
	fail := func(s State, err error) {
		r.State, r.Error = s, oneLine(err.Error())
		if errors.Is(err, context.DeadlineExceeded) {
			r.State, r.Error = StateTimeout, "no answer in time"
		}
	}
	m, d, err := f.Machine(r.Name)
	if err != nil {
		fail(StateError, err)
		return
	}
	r.DriverName, r.labels = m.Driver, m.Engine.values("label")
	if r.State, err = d.State(ctx, m); err != nil {
		fail(StateError, err)
		return
	}
	if !m.Made {
		fail(StateError, fmt.Errorf("create is at work on it, or was interrupted: then remove it (legion machine rm -f %s)", r.Name))
		return
	}
	if c, ok := d.(Cutter); ok {
		cut := cutOff(c, m)
		defer func() {
			r.Error = strings.Join(slices.DeleteFunc([]string{cut, r.Error}, func(s string) bool { return s == "" }), "; ")
		}()
	}
	if r.State != StateRunning {
		return
	}
	e, err := d.Endpoint(m)
	if err != nil {
		fail(StateError, err)
		return
	}
	if r.URL = e.URL; e.URL == "" {
		return // a machine without a daemon of ours
	}
	if host != "" && host == e.URL {
		r.Active = "*"
	}
	h, err := ask(ctx, e)
	if err != nil {
		fail(StateRunning, err)
		return
	}
	r.Swarm, r.DockerVersion, r.Error = h.Swarm, "v"+h.Version, oneLine(h.Error)
}

// cutOff says which cuts a machine has: they are silent, and outlive restarts.
func cutOff(c Cutter, m *Machine) string {
	switch from, everything, err := c.Cuts(m); {
	case err != nil:
		return oneLine(err.Error())
	case everything:
		return "disconnected from everything"
	case len(from) > 0:
		return "disconnected from " + strings.Join(from, ", ")
	}
	return ""
}

const defaultTable = "table {{.Name}}\t{{.Active}}\t{{.DriverName}}\t{{.State}}\t{{.URL}}\t{{.Swarm}}\t{{.DockerVersion}}\t{{.Error}}"

// WriteTable writes rows by a Go template, one a line; with "table " before it,
// aligned and under headings. Empty: docker-machine's columns.
func WriteTable(w io.Writer, rows []Row, format string) error {
	if format == "" {
		format = defaultTable
	}
	text, table := strings.CutPrefix(format, "table ")
	t, err := parseFormat(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text))
	if err != nil {
		return err
	}
	if !table {
		return writeRows(w, t, rows)
	}
	tw := tabwriter.NewWriter(w, 5, 1, 3, ' ', 0)
	if err := t.Execute(tw, map[string]string{
		"Name": "NAME", "Active": "ACTIVE", "DriverName": "DRIVER", "Driver": "DRIVER", "State": "STATE", "URL": "URL",
		"Swarm": "SWARM", "DockerVersion": "DOCKER", "Error": "ERRORS", "ResponseTime": "RESPONSE",
	}); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, _ = fmt.Fprintln(tw)
	if err := writeRows(tw, t, rows); err != nil {
		return err
	}
	return tw.Flush()
}

func writeRows(w io.Writer, t *template.Template, rows []Row) error {
	for _, r := range rows {
		if err := t.Execute(w, r); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
	}
	return nil
}

// parseFormat reads a --format: a Go template that may say {{json .}} and
// {{prettyjson .}}, or "json", which means {{json .}}, as with docker.
func parseFormat(text string) (*template.Template, error) {
	if text == "json" {
		text = "{{json .}}"
	}
	t, err := template.New("format").Funcs(template.FuncMap{"json": func(v any) (string, error) {
		b, err := json.Marshal(v)
		return string(b), err
	}, "prettyjson": func(v any) (string, error) {
		b, err := json.MarshalIndent(v, "", "    ")
		return string(b), err
	}}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

// oneLine keeps a long error from breaking a table.
func oneLine(s string) string {
	const most = 200
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
