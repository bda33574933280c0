package main

import (
	"io"
	"log/slog"

	"github.com/legion-swarm/legion/settings"
)

// newLog returns the daemon's log: one line per record, as text or as JSON.
func newLog(w io.Writer, format string, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// logLevel is that of --log-level; --debug goes before. A daemon that dies says
// so at the level of an error.
func logLevel(conf *settings.Daemon) slog.Level {
	switch {
	case conf.Debug || conf.LogLevel == "debug":
		return slog.LevelDebug
	case conf.LogLevel == "warn":
		return slog.LevelWarn
	case conf.LogLevel == "error" || conf.LogLevel == "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}
