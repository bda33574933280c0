// Command bench measures Legion side by side with dockerd, where one is
// installed, in one interleaved run on one machine: round by round each
// measurement is taken of one peer and then of the other, and the medians are
// printed with their ratio. Only ratios mean something; absolute times are the
// machine's. It needs root, bin/legion and what make bench builds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	rounds := flag.Int("rounds", 3, "rounds; the median counts")
	only := flag.String("only", "", "measure only what contains this")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, only string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	peers := []*peer{{name: "legion", command: []string{"bin/legion", "daemon"}}}
	if path, err := exec.LookPath("dockerd"); err == nil {
		peers = append(peers, &peer{name: "dockerd", command: []string{path}})
	} else {
		fmt.Println("dockerd is not installed (Debian: docker.io): no ratios")
	}
	results := newResults(peers)
	if slices.ContainsFunc(measurements(), func(m measurement) bool { return strings.Contains(m.name, only) }) {
		if err := nodes(ctx, rounds, only, peers, results); err != nil {
			return err
		}
	}
	if strings.Contains("swarm", only) {
		if err := swarms(ctx, rounds, peers, results); err != nil {
			return errors.Join(err, results.print())
		}
	}
	if err := networks(ctx, rounds, only, peers, results); err != nil {
		return errors.Join(err, results.print())
	}
	return results.print()
}

// nodes takes the measurements of one node.
func nodes(ctx context.Context, rounds int, only string, peers []*peer, results *results) (err error) {
	for _, p := range peers {
		defer func() { err = errors.Join(err, p.remove()) }()
		if err := p.start(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	for round := range rounds {
		for _, m := range measurements() {
			if !strings.Contains(m.name, only) {
				continue
			}
			order := slices.Clone(peers)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, p := range order {
				values, err := m.take(ctx, p)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", m.name, p.name, err)
				}
				for name, v := range values {
					results.add(name, p.name, v)
				}
			}
		}
	}
	return nil
}

// results are the values of each metric and peer.
type results struct {
	peers  []*peer
	names  []string // in the order they came
	values map[string]map[string][]float64
}

func newResults(peers []*peer) *results {
	return &results{peers: peers, values: map[string]map[string][]float64{}}
}

func (r *results) add(name, peer string, v float64) {
	if r.values[name] == nil {
		r.values[name] = map[string][]float64{}
		r.names = append(r.names, name)
	}
	r.values[name][peer] = append(r.values[name][peer], v)
}

func (r *results) print() error {
	header := []string{"median of runs"}
	for _, p := range r.peers {
		header = append(header, p.name)
	}
	if len(r.peers) == 2 {
		header = append(header, "ratio")
	}
	lines := []string{strings.Join(header, "\t")}
	slices.Sort(r.names)
	for _, name := range r.names {
		fields := []string{name}
		var medians []float64
		for _, p := range r.peers {
			values := r.values[name][p.name]
			if len(values) == 0 { // what only one of them has
				fields = append(fields, "-")
				continue
			}
			medians = append(medians, median(values))
			fields = append(fields, fmt.Sprintf("%.4g", median(values)))
		}
		if len(medians) == 2 {
			fields = append(fields, fmt.Sprintf("%.2f", medians[0]/medians[1]))
		} else if len(r.peers) == 2 {
			fields = append(fields, "")
		}
		lines = append(lines, strings.Join(fields, "\t"))
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := fmt.Fprintln(w, strings.Join(lines, "\t\n")+"\t"); err != nil {
		return err
	}
	return w.Flush()
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// within polls until done says so.
func within(ctx context.Context, most time.Duration, what string, done func() (bool, error)) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	start := time.Now()
	var last error
	for {
		ok, err := done()
		if ok {
			return time.Since(start), nil
		}
		last = err
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("%s: not within %v: %w", what, most, errors.Join(ctx.Err(), last))
		case <-time.After(5 * time.Millisecond):
		}
	}
}
