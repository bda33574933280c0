package issuer

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// ExternalConfig configures an External.
type ExternalConfig struct {
	// Certificate returns this node's own, by which external CAs know that a
	// manager asks. Required.
	Certificate func() (*tls.Certificate, error)
	// Log is required.
	Log *slog.Logger
}

// External is a client of external CAs, by CFSSL's protocol over mutual TLS: the
// CA's server must have a certificate of the root that it signs for. Safe for
// concurrent use.
type External struct {
	cfg ExternalConfig

	mu     sync.Mutex
	root   string // digest of the root that client trusts
	client *http.Client
}

// NewExternal returns a client.
func NewExternal(cfg ExternalConfig) (*External, error) {
	if cfg.Certificate == nil || cfg.Log == nil {
		return nil, errors.New("issuer: Certificate and Log are required")
	}
	return &External{cfg: cfg}, nil
}

// Sign has one of the CAs sign a node's request. Unavailable: none answers, try
// again. Invalid and PermissionDenied: what the last one answered is no good.
func (e *External) Sign(ctx context.Context, urls []string, root *ca.Root, csr []byte, id ca.Identity) ([]byte, error) {
	body, err := ca.CFSSLRequest(csr, id)
	if err != nil {
		return nil, err
	}
	return e.any(ctx, urls, root, body, func(cert []byte) ([]byte, error) {
		return root.Accept(cert, csr, id, time.Now())
	})
}

// CrossSign has one of the present root's CAs vouch for the next root.
func (e *External) CrossSign(ctx context.Context, urls []string, root, next *ca.Root) ([]byte, error) {
	body, err := ca.CFSSLCrossRequest(next)
	if err != nil {
		return nil, err
	}
	return e.any(ctx, urls, root, body, func(cert []byte) ([]byte, error) { return ca.Normalize(cert), nil })
}

// any asks one after the other until one gives what accept takes.
func (e *External) any(ctx context.Context, urls []string, root *ca.Root, body []byte, accept func([]byte) ([]byte, error)) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	var last error
	for _, url := range urls {
		cert, err := e.post(ctx, url, root, body)
		if err == nil {
			cert, err = accept(cert)
		}
		if err == nil {
			return cert, nil
		}
		e.cfg.Log.Warn("an external CA did not sign", "url", url, "err", err)
		if last == nil || !api.Is(err, api.Unavailable) {
			last = err
		}
	}
	if last == nil {
		last = api.Errorf(api.Unavailable, "no external CA is known for the root")
	}
	return nil, last
}

// Check reports whether one of the CAs answers with a certificate of the root.
// Invalid if none does, with the reasons.
func (e *External) Check(ctx context.Context, urls []string, root *ca.Root) error {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	var errs []error
	for _, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
		if err == nil {
			var resp *http.Response
			if resp, err = e.over(root).Do(req); err == nil {
				return resp.Body.Close()
			}
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("none is configured for it"))
	}
	return api.Errorf(api.Invalid, "there must be at least one valid, reachable external CA corresponding to the CA certificate: %w", errors.Join(errs...))
}

func (e *External) post(ctx context.Context, url string, root *ca.Root, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, api.Errorf(api.Invalid, "external CA %s: %w", url, err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.over(root).Do(req)
	if err != nil {
		return nil, api.Errorf(api.Unavailable, "external CA: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, ca.MaxCFSSLResponse+1))
	switch {
	case err != nil:
		return nil, api.Errorf(api.Unavailable, "external CA %s: %w", url, err)
	case len(answer) > ca.MaxCFSSLResponse:
		return nil, api.Errorf(api.Unavailable, "external CA %s: it answers with more than %d bytes", url, ca.MaxCFSSLResponse)
	case resp.StatusCode != http.StatusOK:
		return nil, api.Errorf(api.Unavailable, "external CA %s: it answers %s", url, resp.Status)
	}
	return ca.CFSSLCertificate(answer)
}

// over returns a client that trusts the root only.
func (e *External) over(root *ca.Root) *http.Client {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil && e.root == root.Digest() {
		return e.client
	}
	if e.client != nil {
		e.client.CloseIdleConnections()
	}
	e.root = root.Digest()
	e.client = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS12, RootCAs: root.Pool(),
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return e.cfg.Certificate() },
			},
			MaxIdleConnsPerHost: maxSigning, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: signTimeout / 2,
			MaxResponseHeaderBytes: 64 << 10,
		},
		// A signer has no business to send us elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("it redirects, which is not followed") },
	}
	return e.client
}
