// Command load is test/traffic for tests in containers: one static file. It
// prints what became of a load as JSON.
//
//	load http [flags] URL...      requests over short and kept connections
//	load udp [flags] ADDRESS      datagrams to "load serve"
//	load dns [flags] SERVER NAME  queries
//	load stream [flags] ADDRESS   streams to "load serve"
//	load resolve NAME...          what the names stand for, by name
//	load serve ADDRESS            the other end of udp and stream
//
// A load ends after -for or -count, or at SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/legion-swarm/legion/test/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say http, udp, dns, stream, resolve or serve")
	}
	verb := args[0]
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	var pace traffic.Pace
	f.IntVar(&pace.Clients, "clients", 1, "clients side by side; streams")
	f.Float64Var(&pace.Rate, "rate", 0, "requests a second of all clients; 0: as fast as they can")
	f.IntVar(&pace.Count, "count", 0, "requests in all; 0: without end")
	f.DurationVar(&pace.Timeout, "timeout", 0, "of each step of a request")
	kept := f.Int("kept", 0, "how many of the clients keep their connections")
	most := f.Duration("for", 0, "how long; 0: without end")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if *most > 0 && verb != "stream" {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *most)
		defer cancel()
	}
	report, err := do(ctx, verb, f.Args(), pace, *kept, *most)
	if err != nil || report == nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

func do(ctx context.Context, verb string, args []string, pace traffic.Pace, kept int, most time.Duration) (any, error) {
	want := map[string]int{"http": max(len(args), 1), "udp": 1, "dns": 2, "stream": 1, "serve": 1, "resolve": len(args)}
	if n, ok := want[verb]; !ok || n != len(args) {
		return nil, fmt.Errorf("%s %q: unknown, or not %d arguments", verb, args, n)
	}
	switch verb {
	case "http":
		return traffic.Web{Pace: pace, URLs: args, Kept: kept}.Run(ctx)
	case "udp":
		return traffic.Datagrams{Pace: pace, Address: args[0], Kept: kept}.Run(ctx)
	case "dns":
		return traffic.Names{Pace: pace, Server: args[0], Name: args[1]}.Run(ctx)
	case "stream":
		return traffic.Stream{Address: args[0], Streams: pace.Clients, For: most, Timeout: pace.Timeout}.Run(ctx)
	case "serve":
		name, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		return nil, traffic.Serve(ctx, args[0], name)
	default:
		return lookup(ctx, args)
	}
}

// lookup is an empty list for a name that does not exist.
func lookup(ctx context.Context, names []string) (any, error) {
	all := map[string][]string{}
	for _, name := range names {
		addrs, err := net.DefaultResolver.LookupHost(ctx, name)
		var unknown *net.DNSError
		if errors.As(err, &unknown) && unknown.IsNotFound {
			err = nil
		}
		if err != nil {
			return nil, err
		}
		slices.Sort(addrs)
		all[name] = addrs
	}
	return all, nil
}
