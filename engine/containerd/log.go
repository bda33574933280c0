package containerd

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// forwardLibraryLog makes containerd's libraries, which log to one logger of
// the process, log to l.
func forwardLibraryLog(l *slog.Logger) {
	std := log.L.Logger
	std.SetOutput(io.Discard)
	std.SetLevel(logrus.WarnLevel)
	std.ReplaceHooks(make(logrus.LevelHooks))
	std.AddHook(libraryLog{l})
}

type libraryLog struct{ l *slog.Logger }

func (libraryLog) Levels() []logrus.Level { return logrus.AllLevels }

// Fire logs an entry. What the libraries call a warning is of no use to users.
func (h libraryLog) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	if e.Level <= logrus.ErrorLevel {
		level = slog.LevelWarn
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	h.l.LogAttrs(context.Background(), level, "containerd: "+e.Message, attrs...)
	return nil
}
