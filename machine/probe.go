package machine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// maxAnswer bounds what a daemon's answer may be.
const maxAnswer = 4 << 20

// Ping asks the daemon at the endpoint whether it is there.
func Ping(ctx context.Context, e Endpoint) error {
	c, err := newClient(e)
	if err != nil {
		return err
	}
	defer c.close()
	return c.get(ctx, "/_ping", nil)
}

// Await returns once the daemon at the endpoint answers, or gone says why it
// never will.
func Await(ctx context.Context, e Endpoint, gone func() error) error {
	c, err := newClient(e)
	if err != nil {
		return err
	}
	defer c.close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		last := c.get(ctx, "/_ping", nil)
		if last == nil {
			return nil
		}
		if err := gone(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("its daemon does not answer: %w", last)
			}
			return context.Cause(ctx)
		}
	}
}

// health is what `ls` asks a daemon.
type health struct {
	Version string
	Swarm   string // leader, manager, worker, locked, pending, error; empty: in none
	Error   string
}

func ask(ctx context.Context, e Endpoint) (health, error) {
	var h health
	c, err := newClient(e)
	if err != nil {
		return h, err
	}
	defer c.close()
	var info struct {
		ServerVersion string
		Swarm         struct {
			NodeID, LocalNodeState, Error string
			ControlAvailable              bool
		}
	}
	if err := c.get(ctx, "/info", &info); err != nil {
		return h, err
	}
	h.Version, h.Error = info.ServerVersion, info.Swarm.Error
	switch s := info.Swarm; {
	case s.LocalNodeState == "inactive":
	case s.LocalNodeState != "active":
		h.Swarm = s.LocalNodeState
	case !s.ControlAvailable:
		h.Swarm = "worker"
	default:
		h.Swarm = "manager"
		var node struct{ ManagerStatus struct{ Leader bool } }
		if c.get(ctx, "/nodes/"+url.PathEscape(s.NodeID), &node) == nil && node.ManagerStatus.Leader {
			h.Swarm = "leader"
		}
	}
	return h, nil
}

// client asks one daemon's API.
type client struct {
	http *http.Client
	base string
}

func newClient(e Endpoint) (*client, error) {
	scheme, addr, _ := strings.Cut(e.URL, "://")
	switch scheme {
	case "unix":
		return &client{base: "http://legion", http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", addr)
			},
		}}}, nil
	case "tcp":
		conf, err := tlsConfig(e.CertDir)
		if err != nil {
			return nil, err
		}
		return &client{base: "https://" + addr, http: &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}}, nil
	}
	return nil, fmt.Errorf("can't reach a daemon at %q", e.URL)
}

func tlsConfig(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", filepath.Join(dir, "ca.pem"))
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

func (c *client) close() { c.http.CloseIdleConnections() }

func (c *client) get(ctx context.Context, path string, to any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Message string }
		_ = json.Unmarshal(body, &e)
		return fmt.Errorf("GET %s: %s: %s", path, resp.Status, e.Message)
	}
	if to == nil {
		return nil
	}
	return json.Unmarshal(body, to)
}
