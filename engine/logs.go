package engine

import (
	"bytes"
	"context"
	"path/filepath"
	"text/template"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine/logfile"
)

func (c *ctr) logPath(driver string) string {
	if driver == logfile.Local {
		return filepath.Join(c.dir, "local.log")
	}
	return filepath.Join(c.dir, c.id+"-json.log")
}

// logOf returns the container's log, which is one object for all its lives.
func (c *ctr) logOf() (*logfile.Log, error) {
	c.mu.Lock()
	l, r := c.log, c.rec
	c.mu.Unlock()
	if l != nil {
		return l, nil
	}
	o, err := logfile.Parse(r.Host.LogConfig.Type, r.Host.LogConfig.Config)
	if err != nil {
		return nil, err
	}
	attrs := o.Attributes(r.Config.Labels, r.Config.Env)
	if o.Tag != "" {
		tag, err := renderTag(o.Tag, &r)
		if err != nil {
			return nil, err
		}
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["tag"] = tag
	}
	l = logfile.New(c.logPath(o.Driver), o, attrs)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log == nil {
		c.log = l
	}
	return c.log, nil
}

// tagData is what log tags' templates can name.
type tagData struct {
	ID, FullID, Name, ImageID, ImageFullID, ImageName, DaemonName, Command string
}

func renderTag(tag string, r *record) (string, error) {
	t, err := template.New("log-tag").Option("missingkey=error").Parse(tag)
	if err != nil {
		return "", api.Errorf(api.Invalid, "log opt tag: %w", err)
	}
	program, _ := command(r.Config)
	var b bytes.Buffer
	err = t.Execute(&b, tagData{
		ID: shortID(r.ID), FullID: r.ID, Name: r.Name, ImageID: shortID(r.ImageID), ImageFullID: r.ImageID,
		ImageName: r.ImageName, DaemonName: "legion", Command: program,
	})
	if err != nil {
		return "", api.Errorf(api.Invalid, "log opt tag: %w", err)
	}
	return b.String(), nil
}

// ContainerLogs calls fn for each message; tty tells how to frame them.
func (e *Engine) ContainerLogs(ctx context.Context, name string, o LogsOptions, fn func(LogMessage) error) (tty bool, err error) {
	c, err := e.find(name)
	if err != nil {
		return false, err
	}
	tty = c.snapshot().Config.Tty
	return tty, c.logs(ctx, o, fn)
}

func (c *ctr) logs(ctx context.Context, o LogsOptions, fn func(LogMessage) error) error {
	if !o.Stdout && !o.Stderr {
		return api.Errorf(api.Invalid, "Bad parameters: you must choose at least one stream")
	}
	l, err := c.logOf()
	if err != nil {
		return err
	}
	return l.Read(ctx, logfile.ReadOptions{Tail: o.Tail, Since: o.Since, Until: o.Until, Follow: o.Follow}, func(m logfile.Message) error {
		if m.Stream == "stderr" && !o.Stderr || m.Stream != "stderr" && !o.Stdout {
			return nil
		}
		line := m.Line
		if !m.Partial {
			line = append(line, '\n')
		}
		return fn(LogMessage{Source: m.Stream, At: m.At, Line: line, Partial: m.Partial, Attrs: m.Attrs})
	})
}
