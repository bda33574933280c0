package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/legion-swarm/legion/settings"
)

// runner is a node as the command sees it.
type runner interface {
	// Run blocks until the context ends or the node cannot go on.
	Run(ctx context.Context) error
	// Reload takes over those settings that may change while a node runs.
	Reload(*settings.Daemon) error
}

// maxInterrupts end the daemon without cleaning up, as dockerd's do.
const maxInterrupts = 3

// loader reads the configuration again.
type loader func() (*settings.Daemon, []string, error)

// runNode runs a node until a signal ends it, which is no error.
func runNode(ctx context.Context, conf *settings.Daemon, level *slog.LevelVar, log *slog.Logger, load loader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	signals := make(chan os.Signal, maxInterrupts)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	n, err := newNode(ctx, conf, log, func() { tell(log, "READY=1") })
	if err != nil {
		return fmt.Errorf("failed to start daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()

	for interrupts := 0; ; {
		select {
		case err := <-ended:
			if interrupts > 0 && (err == nil || errors.Is(err, context.Canceled)) {
				log.Info("Legion ends; containers go on")
				return nil
			}
			if err == nil {
				err = errors.New("the node ended by itself")
			}
			return err
		case s := <-signals:
			if s == syscall.SIGHUP {
				reload(n, conf, level, log, load)
				continue
			}
			if interrupts++; interrupts == maxInterrupts {
				return fmt.Errorf("%d interrupts received: ended without cleaning up", interrupts)
			}
			log.Info("Legion is told to end", "signal", s.String())
			tell(log, "STOPPING=1")
			cancel()
		}
	}
}

// reload takes over what SIGHUP may change: debug and log level here, the
// rest in the node. A file that is wrong changes nothing.
func reload(n runner, old *settings.Daemon, level *slog.LevelVar, log *slog.Logger, load loader) {
	tell(log, "RELOADING=1")
	defer tell(log, "READY=1")
	conf, notes, err := load()
	if err == nil {
		err = n.Reload(conf)
	}
	if err != nil {
		log.Error("configuration is not reloaded", "error", err)
		return
	}
	level.Set(logLevel(conf))
	for _, note := range notes {
		log.Warn(note)
	}
	log.Info("configuration is reloaded", "debug", conf.Debug, "labels", conf.Labels, "restart-needed", !slices.Equal(old.Hosts, conf.Hosts))
}

func tell(log *slog.Logger, state string) {
	if err := notifySystemd(state); err != nil {
		log.Warn("systemd was not told", "error", err)
	}
}
