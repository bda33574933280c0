package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/legion-swarm/legion/settings"
)

// newNode makes the node that the settings describe. The node calls ready once
// its sockets answer.
func newNode(_ context.Context, _ *settings.Daemon, _ *slog.Logger, ready func()) (runner, error) {
	return nil, errors.New("this build has no node")
}
