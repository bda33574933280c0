package sim

import (
	"bytes"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// kept is how many of the last events are shown when something is wrong.
const kept = 400

// events are what happened of late: the script's steps, and what daemons log.
type events struct {
	began time.Time

	mu    sync.Mutex
	lines []string // a ring, once there are kept
	next  int
}

func newEvents() *events { return &events{began: time.Now()} }

func (e *events) add(line string) {
	line = fmt.Sprintf("%10.4f %s", time.Since(e.began).Seconds(), line)
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.lines) < kept {
		e.lines = append(e.lines, line)
		return
	}
	e.lines[e.next] = line
	e.next = (e.next + 1) % kept
}

// tail returns the events, the newest last.
func (e *events) tail() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var b bytes.Buffer
	for i := range e.lines {
		b.WriteString(e.lines[(e.next+i)%len(e.lines)])
		b.WriteByte('\n')
	}
	return b.String()
}

// Write takes a line of a log.
func (e *events) Write(line []byte) (int, error) {
	e.add(string(bytes.TrimRight(line, "\n")))
	return len(line), nil
}

// logger returns the log of a host.
func (e *events) logger(host string) *slog.Logger {
	return slog.New(slog.NewTextHandler(e, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})).With("host", host)
}
