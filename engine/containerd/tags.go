package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/distribution/reference"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// maxTags bounds how many tags of a repository are pulled at once.
const maxTags = 10000

// pullAll pulls every tag of a repository.
func (i *Images) pullAll(ctx context.Context, ref reference.Named, o engine.PullOptions, progress engine.Progress) error {
	if !reference.IsNameOnly(ref) {
		return api.Errorf(api.Invalid, "tag can't be used with --all-tags/-a")
	}
	s, err := i.session(ref, o.Auth, false)
	if err != nil {
		return err
	}
	defer s.close()
	tags, err := s.tags(ctx)
	if err != nil {
		return err
	}
	o.AllTags = false
	for _, tag := range tags {
		if err := i.Pull(ctx, ref.Name()+":"+tag, o, progress); err != nil {
			return err
		}
	}
	return nil
}

// tags lists the repository's tags (OCI distribution specification, "Listing
// Tags").
func (s *session) tags(ctx context.Context) ([]string, error) {
	host := s.hosts[len(s.hosts)-1]
	scope := fmt.Sprintf("repository:%s:pull", reference.Path(s.ref))
	ctx = docker.WithScope(ctx, scope)
	next := fmt.Sprintf("%s://%s%s/%s/tags/list?n=1000", host.Scheme, host.Host, host.Path, reference.Path(s.ref))
	var tags []string
	for next != "" {
		page, link, err := s.tagPage(ctx, host, next)
		if err != nil {
			return nil, s.remoteError(err, "pull")
		}
		if tags = append(tags, page...); len(tags) > maxTags {
			return nil, api.Errorf(api.ResourceExhausted, "%s has more than %d tags; pull them one by one", reference.FamiliarName(s.ref), maxTags)
		}
		next = link
	}
	if len(tags) == 0 {
		return nil, api.Errorf(api.NotFound, "%s has no tags", reference.FamiliarName(s.ref))
	}
	return tags, nil
}

func (s *session) tagPage(ctx context.Context, host docker.RegistryHost, address string) ([]string, string, error) {
	resp, err := s.get(ctx, host, address)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, "", remoteserrors.NewUnexpectedStatusErr(resp)
	}
	var page struct{ Tags []string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxConfigSize)).Decode(&page); err != nil {
		return nil, "", api.Errorf(api.Invalid, "the registry sent a malformed list of tags: %w", err)
	}
	link, _, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	if !ok || len(page.Tags) == 0 {
		return page.Tags, "", nil
	}
	base, err := url.Parse(address)
	if err != nil {
		return nil, "", err
	}
	u, err := base.Parse(link)
	if err != nil || u.Host != base.Host {
		return nil, "", api.Errorf(api.Invalid, "the registry sent a malformed link to further tags: %q", link)
	}
	return page.Tags, u.String(), nil
}

// get sends a request, authorized when the registry asks for it.
func (s *session) get(ctx context.Context, host docker.RegistryHost, address string) (*http.Response, error) {
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, err
		}
		for k, v := range host.Header {
			req.Header[k] = v
		}
		if host.Authorizer != nil {
			if err := host.Authorizer.Authorize(ctx, req); err != nil {
				return nil, err
			}
		}
		resp, err := host.Client.Do(req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || host.Authorizer == nil || try > 0 {
			return resp, nil
		}
		err = host.Authorizer.AddResponses(ctx, []*http.Response{resp})
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
	}
}
