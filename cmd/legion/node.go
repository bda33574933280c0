package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/legion-swarm/legion/settings"
)

func runNode(ctx context.Context, conf *settings.Daemon, level *slog.LevelVar, log *slog.Logger, load func() (*settings.Daemon, []string, error)) error {
	return errors.New("the node is not assembled in this build")
}
