package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

const (
	partTimeout = 2 * time.Second
	maxPage     = 64 << 10
	maxReply    = 512
)

// front answers requests.
type front struct {
	host, version, name, node string
	delay                     time.Duration
	redis, page               string // empty: not asked
	client                    *http.Client
	title                     *regexp.Regexp // of a page
	draining                  atomic.Bool
}

func newFront() (*front, error) {
	delay, err := time.ParseDuration(env("DELAY", "0s"))
	if err != nil {
		return nil, fmt.Errorf("DELAY: %w", err)
	}
	host, err := os.Hostname()
	return &front{
		host: host, version: env("VERSION", "1"), name: os.Getenv("NAME"), node: os.Getenv("NODE"), delay: delay,
		redis: os.Getenv("REDIS"), page: os.Getenv("PAGE"),
		// A connection for each request, so that every one is given a server anew.
		client: &http.Client{Timeout: partTimeout, Transport: &http.Transport{DisableKeepAlives: true}},
		title:  regexp.MustCompile(`(?i)<title>\s*(.*?)\s*</title>`),
	}, err
}

func (f *front) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		if f.draining.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { f.answer(w, r) })
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { f.answer(w, r, f.visits, f.other) })
	return mux
}

// answer says who answers whom, and then what the parts say. A part that does
// not answer makes it a bad gateway. Without parts, nothing is logged.
func (f *front) answer(w http.ResponseWriter, r *http.Request, parts ...func(context.Context) (string, error)) {
	select {
	case <-time.After(f.delay):
	case <-r.Context().Done():
		return
	}
	var text strings.Builder
	fmt.Fprintf(&text, "hello from %s, version %s, to %s\n", f.host, f.version, r.RemoteAddr)
	if f.name != "" {
		fmt.Fprintf(&text, "I am %s on %s\n", f.name, f.node)
	}
	status := http.StatusOK
	for _, part := range parts {
		line, err := part(r.Context())
		if err != nil {
			line, status = err.Error(), http.StatusBadGateway
		}
		if line != "" {
			text.WriteString(line + "\n")
		}
	}
	if f.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text.String())
	if len(parts) > 0 {
		log.Printf("%s %s from %s: %d", r.Method, r.URL.Path, r.RemoteAddr, status)
	}
}

// visits counts one more in redis.
func (f *front) visits(ctx context.Context) (string, error) {
	if f.redis == "" {
		return "", nil
	}
	n, err := f.count(ctx)
	if err != nil {
		return "", fmt.Errorf("redis: %w", err)
	}
	return "visit " + n + ", counted by redis at " + f.redis, nil
}

func (f *front) count(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", f.redis)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "INCR visits\r\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(io.LimitReader(c, maxReply)).ReadString('\n')
	if err != nil {
		return "", err
	}
	n, ok := strings.CutPrefix(strings.TrimSpace(line), ":")
	if !ok {
		return "", errors.New(strings.TrimSpace(line))
	}
	return n, nil
}

// other fetches the page and returns its title.
func (f *front) other(ctx context.Context) (string, error) {
	if f.page == "" {
		return "", nil
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.page, nil)
	if err != nil {
		return "", fmt.Errorf("PAGE: %w", err)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.page, err)
	}
	t := f.title.FindSubmatch(b)
	if resp.StatusCode != http.StatusOK || t == nil {
		return "", fmt.Errorf("%s says %s", f.page, resp.Status)
	}
	return fmt.Sprintf("%s says: %s", f.page, t[1]), nil
}
