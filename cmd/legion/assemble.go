package main

import (
	"context"
	"log/slog"

	"github.com/legion-swarm/legion/node"
	"github.com/legion-swarm/legion/settings"
)

// newNode makes the node that the settings describe. The node calls ready once
// its sockets answer.
func newNode(ctx context.Context, conf *settings.Daemon, log *slog.Logger, ready func()) (runner, error) {
	b := readBuild()
	return node.New(ctx, node.Config{
		Settings: conf, Build: node.Build{Version: b.version, Commit: b.commit, Time: b.time}, Log: log, Ready: ready,
	})
}
