package containerd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/legion-swarm/legion/api"
)

const (
	hubDomain = "docker.io"
	hubHost   = "registry-1.docker.io"
)

// session is the conversation with the registries of one reference.
type session struct {
	remotes.Resolver
	ref     reference.Named
	auth    *registry.AuthConfig
	clients []*http.Client
	hosts   []docker.RegistryHost
}

// session prepares to speak to the registry of ref, and for pulling from
// Docker Hub to its mirrors before it.
func (i *Images) session(ref reference.Named, auth *registry.AuthConfig, push bool) (*session, error) {
	s := &session{ref: ref, auth: auth}
	domain := reference.Domain(ref)
	if domain == hubDomain && !push {
		for _, m := range i.cfg.Mirrors {
			u, err := url.Parse(m)
			if err != nil || u.Host == "" {
				return nil, api.Errorf(api.Invalid, "registry mirror %q is not a URL as https://host:port", m)
			}
			h, err := i.host(s, u.Host, u.Scheme, strings.TrimSuffix(u.Path, "/"), false)
			if err != nil {
				return nil, err
			}
			h.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve
			s.hosts = append(s.hosts, h)
		}
	}
	if domain == hubDomain {
		domain = hubHost
	}
	h, err := i.host(s, domain, "https", "", true)
	if err != nil {
		return nil, err
	}
	h.Capabilities = docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush
	s.hosts = append(s.hosts, h)
	s.Resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(string) ([]docker.RegistryHost, error) { return s.hosts, nil },
		Headers: http.Header{"User-Agent": {i.cfg.UserAgent}},
	})
	return s, nil
}

// close ends the session's idle connections.
func (s *session) close() {
	for _, c := range s.clients {
		c.CloseIdleConnections()
	}
}

func (i *Images) host(s *session, host, scheme, path string, withAuth bool) (docker.RegistryHost, error) {
	insecure := i.insecure(host)
	tlsConfig, err := i.tlsConfig(host, insecure)
	if err != nil {
		return docker.RegistryHost{}, err
	}
	t := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 10 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute, ExpectContinueTimeout: 5 * time.Second,
		TLSClientConfig: tlsConfig,
	}
	c := &http.Client{Transport: t}
	if insecure && scheme == "https" {
		c.Transport = docker.NewHTTPFallback(t)
	}
	s.clients = append(s.clients, &http.Client{Transport: t})
	h := docker.RegistryHost{Client: c, Host: host, Scheme: scheme, Path: path + "/v2"}
	opts := []docker.AuthorizerOpt{docker.WithAuthClient(c), docker.WithAuthHeader(http.Header{"User-Agent": {i.cfg.UserAgent}})}
	if a := s.auth; withAuth && a != nil {
		if a.RegistryToken != "" {
			h.Header = http.Header{"Authorization": {"Bearer " + a.RegistryToken}}
			return h, nil
		}
		opts = append(opts, docker.WithAuthCreds(func(string) (string, string, error) {
			if a.IdentityToken != "" {
				return "", a.IdentityToken, nil
			}
			return a.Username, a.Password, nil
		}))
	}
	h.Authorizer = &oneByOne{a: docker.NewDockerAuthorizer(opts...), turn: make(chan struct{}, 1)}
	return h, nil
}

// oneByOne is an Authorizer of which parallel transfers take turns:
// containerd's (2.4) writes a token that it shares without a lock.
type oneByOne struct {
	a    docker.Authorizer
	turn chan struct{}
}

func (o *oneByOne) Authorize(ctx context.Context, q *http.Request) error {
	return o.do(ctx, func() error { return o.a.Authorize(ctx, q) })
}

func (o *oneByOne) AddResponses(ctx context.Context, r []*http.Response) error {
	return o.do(ctx, func() error { return o.a.AddResponses(ctx, r) })
}

func (o *oneByOne) do(ctx context.Context, f func() error) error {
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
		return f()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// insecure tells whether a registry may be spoken to without a verified
// certificate: loopback addresses and what the configuration lists.
func (i *Images) insecure(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	isAddr := err == nil
	if isAddr && addr.Unmap().IsLoopback() {
		return true
	}
	for _, entry := range i.cfg.Insecure {
		if p, err := netip.ParsePrefix(entry); err == nil {
			if isAddr && p.Contains(addr.Unmap()) {
				return true
			}
		} else if entry == hostport || entry == host {
			return true
		}
	}
	return false
}

// tlsConfig reads a registry's own authorities and client certificates.
func (i *Images) tlsConfig(host string, insecure bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure} //nolint:gosec // asked for by the configuration
	dir := filepath.Join(i.cfg.CertsDir, host)
	entries, err := os.ReadDir(dir)
	if err != nil {
		if os.IsNotExist(err) {
			return c, nil
		}
		return nil, fmt.Errorf("certificates of registry %s: %w", host, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch filepath.Ext(path) {
		case ".crt":
			pem, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if c.RootCAs == nil {
				if c.RootCAs, err = x509.SystemCertPool(); err != nil {
					c.RootCAs = x509.NewCertPool()
				}
			}
			if !c.RootCAs.AppendCertsFromPEM(pem) {
				return nil, api.Errorf(api.Invalid, "%s has no certificate in it", path)
			}
		case ".cert":
			pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
			if err != nil {
				return nil, api.Errorf(api.Invalid, "certificate of registry %s: %w", host, err)
			}
			c.Certificates = append(c.Certificates, pair)
		}
	}
	return c, nil
}

// remoteError says what a registry's refusal means for the reference, in
// docker's words: not there, not allowed, or not reached.
func (s *session) remoteError(err error, what string) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	name, full := reference.FamiliarName(s.ref), reference.FamiliarString(s.ref)
	var status remoteserrors.ErrUnexpectedStatus
	code := 0
	if errors.As(err, &status) {
		code = status.StatusCode
	}
	withCreds := s.auth != nil && (s.auth.Username != "" || s.auth.IdentityToken != "" || s.auth.RegistryToken != "")
	denied := errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) ||
		code == http.StatusUnauthorized || code == http.StatusForbidden || strings.Contains(err.Error(), "insufficient_scope")
	switch {
	case denied && what == "push":
		return api.Errorf(api.PermissionDenied, "push access denied for %s, repository does not exist or may require authorization: %w", name, err)
	case denied && withCreds && code == http.StatusUnauthorized:
		return api.Errorf(api.Unauthenticated, "unauthorized: the registry %s refused the user name or password for %s: %w", reference.Domain(s.ref), name, err)
	case denied:
		return api.Errorf(api.PermissionDenied, "%s access denied for %s, repository does not exist or may require 'docker login': %w", what, name, err)
	case errdefs.IsNotFound(err), code == http.StatusNotFound:
		return api.Errorf(api.NotFound, "manifest for %s not found: manifest unknown: %w", full, err)
	case code == http.StatusTooManyRequests:
		return api.Errorf(api.ResourceExhausted, "toomanyrequests: the registry %s limits the rate of requests; wait, or log in: %w", reference.Domain(s.ref), err)
	case code >= 500:
		return api.Errorf(api.Unavailable, "the registry %s failed: %w", reference.Domain(s.ref), err)
	}
	var netErr net.Error
	var opErr *net.OpError
	var certErr *tls.CertificateVerificationError
	if errors.As(err, &certErr) {
		return api.Errorf(api.Unavailable, "the registry %s has a certificate that nobody vouches for: %w; add its authority under %s, or the registry to --insecure-registry", reference.Domain(s.ref), err, s.certHint())
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return api.Errorf(api.Unavailable, "the registry %s speaks plain HTTP, which only loopback addresses and those of --insecure-registry may: %w", reference.Domain(s.ref), err)
	}
	if errors.As(err, &opErr) || errors.As(err, &netErr) {
		return api.Errorf(api.Unavailable, "cannot reach the registry %s: %w", reference.Domain(s.ref), err)
	}
	return classify(err, "%s %s", what, full)
}

func (s *session) certHint() string { return "/etc/docker/certs.d/" + reference.Domain(s.ref) }

// parseRef is a reference with its tag; a digest goes before a tag.
func parseRef(ref string) (reference.Named, error) {
	n, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "invalid reference format: %q: %w", ref, err)
	}
	n = reference.TagNameOnly(n)
	if d, ok := n.(reference.Digested); ok {
		return reference.WithDigest(reference.TrimNamed(n), d.Digest())
	}
	return n, nil
}
