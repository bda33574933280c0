package node

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moby/moby/api/types/registry"

	"github.com/legion-swarm/legion/api"
)

// The address that "docker login" without a server means, and the registry
// that answers for it.
const (
	indexServer    = "https://index.docker.io/v1/"
	indexRegistry  = "registry-1.docker.io"
	loginTimeout   = 15 * time.Second
	loginBodyLimit = 1 << 20
)

// errNoConnection marks failures before the registry answered. It adds no text.
var errNoConnection = errors.New("")

// login asks a registry whether it accepts the credentials, by the
// distribution specification's challenge (basic or bearer token).
type login struct {
	// insecure reports whether plain HTTP, or TLS with an unknown certificate,
	// will do for a registry.
	insecure func(host string) bool
}

// Auth returns Docker's answer for accepted credentials, Unauthenticated for
// refused ones, and Unavailable for a registry that cannot be reached.
func (l login) Auth(ctx context.Context, a *registry.AuthConfig) (*registry.AuthResponse, error) {
	host, err := registryHost(a.ServerAddress)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout)
	defer cancel()
	insecure := l.insecure(host)
	client := &http.Client{Transport: &http.Transport{
		Proxy:             http.ProxyFromEnvironment,
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}, //nolint:gosec // only for registries that the user named insecure
	}}
	err = check(ctx, client, "https://"+host, a)
	if insecure && errors.Is(err, errNoConnection) {
		err = check(ctx, client, "http://"+host, a)
	}
	if err != nil {
		return nil, err
	}
	return &registry.AuthResponse{Status: "Login Succeeded"}, nil
}

// registryHost reads host[:port] from what docker login calls a server.
func registryHost(server string) (string, error) {
	if server == "" || server == indexServer || server == "docker.io" || server == "index.docker.io" {
		return indexRegistry, nil
	}
	rest := server
	if _, after, ok := strings.Cut(server, "://"); ok {
		rest = after
	}
	host, _, _ := strings.Cut(rest, "/")
	if host == "" || strings.ContainsAny(host, " @?#") {
		return "", api.Errorf(api.Invalid, "invalid registry address %q: want HOST[:PORT]", server)
	}
	return host, nil
}

func check(ctx context.Context, c *http.Client, base string, a *registry.AuthConfig) error {
	resp, err := get(ctx, c, base+"/v2/", func(r *http.Request) { setBasic(r, a) })
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	if resp.StatusCode != http.StatusUnauthorized {
		return api.Errorf(api.Unavailable, "login attempt to %s/v2/ failed with status: %s", base, resp.Status)
	}
	scheme, params := challenge(resp.Header.Get("WWW-Authenticate"))
	if scheme != "bearer" {
		return refused(base)
	}
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return api.Errorf(api.Unavailable, "registry %s names an invalid token server %q", base, params["realm"])
	}
	if realm.Scheme != "https" && strings.HasPrefix(base, "https:") {
		return api.Errorf(api.Unavailable, "registry %s would send credentials in clear text to %s", base, realm.Host)
	}
	q := realm.Query()
	for _, k := range []string{"service", "scope"} {
		if params[k] != "" {
			q.Set(k, params[k])
		}
	}
	q.Set("account", a.Username)
	q.Set("client_id", "docker")
	realm.RawQuery = q.Encode()
	resp, err = get(ctx, c, realm.String(), func(r *http.Request) { setBasic(r, a) })
	if err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return refused(base)
	}
	return api.Errorf(api.Unavailable, "token server of %s answered: %s", base, resp.Status)
}

func refused(base string) error {
	return api.Errorf(api.Unauthenticated, "login attempt to %s/v2/ failed with status: 401 Unauthorized: incorrect username or password", base)
}

func setBasic(r *http.Request, a *registry.AuthConfig) {
	if a.Username != "" {
		r.SetBasicAuth(a.Username, a.Password)
	}
}

// get does the request and drains a bounded part of the answer's body.
func get(ctx context.Context, c *http.Client, target string, prepare func(*http.Request)) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "registry address: %w", err)
	}
	prepare(req)
	resp, err := c.Do(req)
	if err != nil {
		var dns *net.DNSError
		if errors.As(err, &dns) {
			return nil, api.Errorf(api.Unavailable, "registry %s cannot be found: %w", req.URL.Host, err)
		}
		return nil, api.Errorf(api.Unavailable, "registry %s cannot be reached: %w%w", req.URL.Host, err, errNoConnection)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, loginBodyLimit))
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return nil, api.Errorf(api.Unavailable, "registry %s: %w", req.URL.Host, err)
	}
	return resp, nil
}

// challenge reads a WWW-Authenticate header (RFC 9110, 11.6.1) of one scheme.
func challenge(header string) (scheme string, params map[string]string) {
	scheme, rest, _ := strings.Cut(strings.TrimSpace(header), " ")
	params = map[string]string{}
	for rest != "" {
		var key, value string
		key, rest, _ = strings.Cut(rest, "=")
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, rest, _ = strings.Cut(quoted, `"`)
			_, rest, _ = strings.Cut(rest, ",")
		} else {
			value, rest, _ = strings.Cut(rest, ",")
		}
		params[strings.ToLower(strings.TrimSpace(key))] = value
		rest = strings.TrimSpace(rest)
	}
	return strings.ToLower(scheme), params
}
