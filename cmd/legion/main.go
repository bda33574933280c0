// Command legion is all of Legion in one binary: "legion daemon" runs a node,
// and everything else is the command line, which is Docker's own with all of
// its commands, talking to the local node unless told otherwise.
//
// The package parses, assembles and reports; what a node does is in package
// node and below.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/version"

	"github.com/legion-swarm/legion/machine/local"
	"github.com/legion-swarm/legion/network/linux/keeper"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == local.InitCommand {
		os.Exit(local.Init(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == keeper.Command {
		os.Exit(keeper.Run(os.Args[2:], os.Stderr))
	}
	os.Exit(run(os.Args, os.Stderr))
}

// run is main with its surroundings as arguments. It returns the exit status.
func run(args []string, stderr io.Writer) int {
	version.Version = readBuild().version // where Docker's CLI looks for it
	version.GitCommit = readBuild().commit
	version.BuildTime = readBuild().time
	version.PlatformName = "Legion"

	err := dispatch(args)
	if err == nil || errdefs.IsCanceled(err) {
		return 0
	}
	if text := err.Error(); text != "" {
		_, _ = fmt.Fprintln(stderr, sayLegion(text))
	}
	return exitStatus(err)
}

// dispatch runs the daemon without building the tree of client commands, which
// a process that lives for months need not keep.
func dispatch(args []string) error {
	if len(args) > 1 && args[1] == daemonName {
		cmd := newDaemonCommand()
		cmd.SetArgs(args[2:])
		return cmd.Execute()
	}
	ctx, stop := cancelOnSignal(context.Background())
	defer stop()
	return runClient(ctx, args[1:])
}

// terminated is the cause of a context that a signal cancelled.
type terminated struct{ signal syscall.Signal }

// Error is empty: whoever sent the signal knows.
func (terminated) Error() string { return "" }

// cancelOnSignal cancels the context at the first SIGINT or SIGTERM, and ends
// the process at the third, for commands that do not heed their context.
func cancelOnSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for count := 1; ; count++ {
			select {
			case <-done:
				return
			case s := <-signals:
				cancel(terminated{s.(syscall.Signal)})
				if count == 3 {
					_, _ = fmt.Fprintln(os.Stderr, "\ngot 3 SIGTERM/SIGINTs, forcefully exiting")
					os.Exit(1)
				}
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

// exitStatus is the error's own status, 128 and the signal's number for one
// that a signal caused, else 1.
func exitStatus(err error) int {
	var t terminated
	if errors.As(err, &t) {
		return 128 + int(t.signal)
	}
	var s cli.StatusError
	if errors.As(err, &s) && s.StatusCode != 0 {
		return s.StatusCode
	}
	return 1
}
