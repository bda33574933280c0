package executor

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/registry"

	"github.com/legion-swarm/legion/api"
)

func TestPullError(t *testing.T) {
	login := &registry.AuthConfig{Username: "joe", Password: "hidden"}
	for _, c := range []struct {
		name string
		auth *registry.AuthConfig
		err  error
		want []string // and that a missing image is called so only where it is one
	}{
		{"not known", nil, api.Errorf(api.NotFound, "manifest unknown"), []string{"No such image: r.example:5000/app:1", "manifest unknown"}},
		{"no login", nil, api.Errorf(api.PermissionDenied, "denied"), []string{"denied by the registry r.example:5000", "has no login", "docker login r.example:5000", "--with-registry-auth"}},
		{"bad login", login, api.Errorf(api.Unauthenticated, "unauthorized"), []string{"denied by the registry r.example:5000", "in spite of", "docker login"}},
		{"no right", login, api.Errorf(api.PermissionDenied, "denied"), []string{"denied by the registry r.example:5000", "in spite of"}},
		{"down", login, api.Errorf(api.Unavailable, "cannot reach the registry r.example:5000"), []string{"could not be pulled", "cannot reach the registry"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := pullError("r.example:5000/app:1", c.auth, c.err)
			if api.ClassOf(err) != api.ClassOf(c.err) {
				t.Errorf("class %d, want %d", api.ClassOf(err), api.ClassOf(c.err))
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if api.Is(c.err, api.NotFound) != strings.Contains(err.Error(), "No such image") || strings.Contains(err.Error(), "hidden") {
				t.Errorf("it says %q", err)
			}
		})
	}
	if err := pullError("app", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestDecodeAuth(t *testing.T) {
	for in, ok := range map[string]bool{"": true, "e30=": true, "eyJ1c2VybmFtZSI6ImpvZSJ9": true, "***": false, "e30": false, "W10=": false} {
		if _, err := decodeAuth(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}
