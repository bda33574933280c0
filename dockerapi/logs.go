package dockerapi

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// logTime is the format of --timestamps.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// logs answers requests for logs of containers, tasks and services.
type logs struct {
	c          *call
	o          engine.LogsOptions
	timestamps bool
	details    bool
	out        *flusher
	mux        *mux // nil with a terminal: the streams come unframed
	buf        []byte
}

func (c *call) logs() (*logs, error) {
	l := &logs{c: c, timestamps: c.bool("timestamps"), details: c.bool("details")}
	l.o = engine.LogsOptions{Stdout: c.bool("stdout"), Stderr: c.bool("stderr"), Follow: c.bool("follow"), Tail: -1}
	if !l.o.Stdout && !l.o.Stderr {
		return nil, api.Errorf(api.Invalid, "Bad parameters: you must choose at least one stream")
	}
	var err error
	if l.o.Since, err = c.time("since"); err != nil {
		return nil, err
	}
	if l.o.Until, err = c.time("until"); err != nil {
		return nil, err
	}
	// Anything but a number means all, as with Docker.
	if n, err := strconv.Atoi(c.query.Get("tail")); err == nil && n >= 0 {
		l.o.Tail = n
	}
	return l, nil
}

// swarmLogs reads a request for logs of a task or service. Unlike that for a
// container's, it is told if its tail is no number.
func (c *call) swarmLogs() (*logs, error) {
	if tail := c.query.Get("tail"); tail != "" && tail != "all" {
		if n, err := strconv.Atoi(tail); err != nil || n < 0 {
			return nil, api.Errorf(api.Invalid, "tail value must be a positive integer or \"all\": %q", tail)
		}
	}
	return c.logs()
}

// begin sends the headers: from here on errors go into the stream.
func (l *logs) begin(tty bool) {
	h := l.c.w.Header()
	if tty || l.c.version.before(42) {
		h.Set("Content-Type", types.MediaTypeRawStream)
	} else {
		h.Set("Content-Type", types.MediaTypeMultiplexedStream)
	}
	l.c.w.WriteHeader(http.StatusOK)
	l.out = l.c.flusher()
	if !tty {
		l.mux = newMux(l.out)
	}
}

func (l *logs) write(m engine.LogMessage, extra map[string]string) error {
	stream := byte(frameStdout)
	if m.Source == "stderr" {
		stream = frameStderr
	}
	if stream == frameStdout && !l.o.Stdout || stream == frameStderr && !l.o.Stderr {
		return nil
	}
	l.buf = l.buf[:0]
	if l.timestamps {
		l.buf = append(m.At.UTC().AppendFormat(l.buf, logTime), ' ')
	}
	if l.details {
		l.buf = append(appendAttrs(l.buf, m.Attrs, extra), ' ')
	}
	l.buf = append(l.buf, m.Line...)
	if l.mux == nil {
		_, err := l.out.Write(l.buf)
		return err
	}
	_, err := l.mux.write(stream, l.buf)
	return err
}

// end closes the stream; an error is told in it, as a terminal's last line where
// the stream is one.
func (l *logs) end(err error) error {
	switch {
	case err == nil || l.c.ctx.Err() != nil:
	case l.mux != nil:
		_, _ = l.mux.write(frameSystem, []byte("Error grabbing logs: "+err.Error()+"\n"))
	default:
		_, _ = l.out.Write([]byte("Error grabbing logs: " + err.Error() + "\r\n"))
	}
	_ = l.out.Close() // never fails
	return err
}

// appendAttrs writes k=v pairs, sorted and escaped for a URL's query, with
// commas between. The values of extra win.
func appendAttrs(b []byte, attrs, extra map[string]string) []byte {
	if len(extra) > 0 {
		all := make(map[string]string, len(attrs)+len(extra))
		maps.Copy(all, attrs)
		maps.Copy(all, extra)
		attrs = all
	}
	for i, k := range slices.Sorted(maps.Keys(attrs)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, url.QueryEscape(k)...)
		b = append(b, '=')
		b = append(b, url.QueryEscape(attrs[k])...)
	}
	return b
}

// taskLog writes a message of a task. Who said it goes in the details, which
// the docker CLI asks for and shows as NAME.SLOT@NODE.
func (l *logs) taskLog(m TaskLog) error {
	if m.Note {
		if !l.o.Stderr {
			m.Source = "stdout"
		}
		if m.TaskID == "" && l.details { // clients ask for the task's name
			return nil
		}
	}
	if !strings.HasSuffix(string(m.Line), "\n") && !m.Partial {
		m.Line = append(slices.Clone(m.Line), '\n')
	}
	return l.write(m.LogMessage, map[string]string{
		"com.docker.swarm.node.id":    m.NodeID,
		"com.docker.swarm.service.id": m.ServiceID,
		"com.docker.swarm.task.id":    m.TaskID,
	})
}
