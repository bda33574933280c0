package node

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/registry"

	"github.com/legion-swarm/legion/api"
)

func TestLogin(t *testing.T) {
	right := func(r *http.Request) bool {
		u, p, ok := r.BasicAuth()
		return ok && u == "ann" && p == "secret"
	}
	basic := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !right(r) {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer basic.Close()
	var token *httptest.Server
	token = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if !right(r) || r.FormValue("service") != "reg" {
				w.WriteHeader(http.StatusUnauthorized)
			}
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="reg"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer token.Close()
	clear := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://elsewhere.invalid/token"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer clear.Close()
	host := func(s *httptest.Server) string { return strings.SplitN(s.URL, "//", 2)[1] }

	for _, c := range []struct {
		name, server, password string
		secure                 bool
		class                  api.Class
		want                   string // part of the error; empty: accepted
	}{
		{name: "basic", server: host(basic), password: "secret"},
		{name: "with scheme and path", server: basic.URL + "/v2/", password: "secret"},
		{name: "basic refused", server: host(basic), password: "wrong", class: api.Unauthenticated, want: "401"},
		{name: "token", server: host(token), password: "secret"},
		{name: "token refused", server: host(token), password: "wrong", class: api.Unauthenticated, want: "401"},
		{name: "unknown certificate", server: host(token), password: "secret", secure: true, class: api.Unavailable, want: "certificate"},
		{name: "token server in clear text", server: host(clear), password: "secret", class: api.Unavailable, want: "clear text"},
		{name: "nobody there", server: "127.0.0.1:1", class: api.Unavailable, want: "cannot be reached"},
		{name: "no address", server: "https:///x", class: api.Invalid, want: "invalid registry address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := login{insecure: func(string) bool { return !c.secure }}
			got, err := l.Auth(context.Background(), &registry.AuthConfig{Username: "ann", Password: c.password, ServerAddress: c.server})
			if c.want == "" {
				if err != nil || got.Status != "Login Succeeded" {
					t.Fatalf("got %+v, %v", got, err)
				}
				return
			}
			if !api.Is(err, c.class) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v; want class %v with %q", err, c.class, c.want)
			}
		})
	}
}

func TestChallenge(t *testing.T) {
	scheme, params := challenge(`Bearer realm="https://a/t",service="b, c",scope=x`)
	want := map[string]string{"realm": "https://a/t", "service": "b, c", "scope": "x"}
	if scheme != "bearer" || !cmp.Equal(params, want) {
		t.Fatalf("got %s %v", scheme, params)
	}
	if _, params := challenge(`Basic realm`); !cmp.Equal(params, map[string]string{"realm": ""}) {
		t.Fatalf("got %v", params)
	}
}
