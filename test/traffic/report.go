package traffic

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Failure is a request without a good answer.
type Failure struct {
	At    time.Time
	Stage string // connect, send, receive, answer
	// Nth request of its connection, from 1.
	Nth    int
	Local  string // the connection's own address, if there was one
	Reason string
}

func (f Failure) String() string {
	return fmt.Sprintf("%s %s (request %d of %s): %s", f.At.Format("15:04:05.000"), f.Stage, f.Nth, f.Local, f.Reason)
}

// maxFailures are reported one by one.
const maxFailures = 50

// Report is what became of a load.
type Report struct {
	Requests, Failed int
	Failures         []Failure // the first ones
	Connections      int
	// Reopened connections were closed by the server between two requests.
	Reopened int
	Seconds  float64
	Latency  Latency
	Gap      float64        // the longest time without an answer, in seconds
	Bytes    int64          // streams: what arrived
	Servers  map[string]int // answers by who gave them
	Clients  map[string]int // answers by the client's address, as servers saw it
}

// Latency is of the requests that succeeded, in milliseconds; that of a short
// connection includes making it.
type Latency struct{ P50, P90, P99, Max float64 }

// Rate is successful requests a second.
func (r *Report) Rate() float64 { return float64(r.Requests-r.Failed) / r.Seconds }

func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests, %d failed, %.0f/s over %d connections, p50 %.2f ms, p99 %.2f ms, max %.1f ms, longest gap %.2f s, %d servers",
		r.Requests, r.Failed, r.Rate(), r.Connections, r.Latency.P50, r.Latency.P99, r.Latency.Max, r.Gap, len(r.Servers))
	for _, f := range r.Failures {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// recorder gathers a report; it is safe for concurrent use.
type recorder struct {
	mu        sync.Mutex
	r         Report
	began     time.Time
	answered  time.Time // last
	latencies []float64
}

func newRecorder() *recorder {
	now := time.Now()
	return &recorder{began: now, answered: now, r: Report{Servers: map[string]int{}, Clients: map[string]int{}}}
}

func (c *recorder) connected(again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Connections++
	if again {
		c.r.Reopened++
	}
}

// done notes a request that began at start. server and client may be empty.
func (c *recorder) done(start time.Time, server, client string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Requests++
	c.latencies = append(c.latencies, now.Sub(start).Seconds()*1e3)
	c.r.Gap = max(c.r.Gap, now.Sub(c.answered).Seconds())
	c.answered = now
	if server != "" {
		c.r.Servers[server]++
		c.r.Clients[client]++
	}
}

func (c *recorder) failed(f Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Requests++
	c.r.Failed++
	if len(c.r.Failures) < maxFailures {
		c.r.Failures = append(c.r.Failures, f)
	}
}

func (c *recorder) report() *Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.Seconds = time.Since(c.began).Seconds()
	c.r.Gap = max(c.r.Gap, time.Since(c.answered).Seconds())
	slices.Sort(c.latencies)
	c.r.Latency = Latency{P50: c.quantile(.5), P90: c.quantile(.9), P99: c.quantile(.99), Max: c.quantile(1)}
	r := c.r
	r.Servers, r.Clients = maps.Clone(c.r.Servers), maps.Clone(c.r.Clients)
	return &r
}

func (c *recorder) quantile(q float64) float64 {
	if len(c.latencies) == 0 {
		return 0
	}
	return c.latencies[int(q*float64(len(c.latencies)-1))]
}

// who finds in an answer who gave it and whom it saw, as demo/web and Serve say
// it: "hello from HOST, version V, to ADDRESS:PORT".
func who(answer []byte) (server, client string) {
	line, _, _ := strings.Cut(string(answer), "\n")
	rest, ok := strings.CutPrefix(line, "hello from ")
	if !ok {
		return "", ""
	}
	server, rest, _ = strings.Cut(rest, ", ")
	_, client, _ = strings.Cut(rest, "to ")
	if i := strings.LastIndexByte(client, ':'); i >= 0 {
		client = client[:i]
	}
	return server, strings.Trim(client, "[]")
}
