// Command scale brings a great many tasks to RUNNING on a great many nodes:
// three managers, each a process of its own with its log on a disk (every write
// is synced), TLS between all, and agents, which are another process. It prints
// tasks a second, how long each stage took, and what the managers took of
// memory and processor.
//
// Real are raft, store, loops of the leader, dispatchers with their sessions,
// assignments and heart-beats, gRPC and TLS. Not real are the agents: many share
// a connection and one certificate and say in each call which node they are, and
// a task that is assigned is RUNNING at once; they report nothing in between,
// unless -steps asks for it. The managers run no containers and have no API.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// size is what is measured.
type size struct {
	Nodes, Tasks, Services int
	Beat                   time.Duration // the heart-beat period
	Steps                  bool          // agents report every state on the way to RUNNING
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "manager" {
		exit(serve(context.Background(), os.Stdin, os.Stdout))
	}
	var (
		s       size
		tenth   = flag.Bool("tenth", false, "a tenth of everything")
		dir     = flag.String("dir", "", "where the logs of the managers go: on a real disk (default: build/scale)")
		profile = flag.String("cpuprofile", "", "folder for profiles of the managers and the agents")
		limit   = flag.Duration("limit", 10*time.Minute, "how long it may take")
	)
	flag.IntVar(&s.Nodes, "nodes", 10_000, "agents")
	flag.IntVar(&s.Tasks, "tasks", 1_000_000, "tasks")
	flag.IntVar(&s.Services, "services", 1000, "services that the tasks are of")
	flag.DurationVar(&s.Beat, "heartbeat", 5*time.Second, "heart-beat period")
	flag.BoolVar(&s.Steps, "steps", false, "agents report every state on the way to RUNNING, each in a call of its own")
	flag.Parse()
	if *tenth {
		s.Nodes, s.Tasks, s.Services = s.Nodes/10, s.Tasks/10, max(s.Services/10, 1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	exit(run(ctx, s, *dir, *profile))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, s size, dir, profile string) (err error) {
	if dir == "" {
		dir = filepath.Join("build", "scale")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if dir, err = os.MkdirTemp(dir, "run-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	f, err := newFleet(ctx, dir, s, profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.end()) }()
	a, err := newAgents(f, s, log)
	if err != nil {
		return err
	}
	defer a.close()
	r := &report{size: s, fleet: f, agents: a}
	return r.run(ctx)
}
