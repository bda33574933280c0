package executor

import (
	"encoding/base64"
	"encoding/json"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"

	"github.com/legion-swarm/legion/api"
)

// decodeAuth reads what came in an X-Registry-Auth header.
func decodeAuth(s string) (*registry.AuthConfig, error) {
	if s == "" {
		return nil, nil
	}
	b, err := base64.URLEncoding.DecodeString(s)
	if err != nil {
		if b, err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, api.Errorf(api.Invalid, "the registry login of the service is not base64: %w", err)
		}
	}
	a := &registry.AuthConfig{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, api.Errorf(api.Invalid, "the registry login of the service is malformed: %w", err)
	}
	return a, nil
}

// pullError says why a task's image can't be had, and what to do about it. Only
// an image that its registry does not know is "No such image": one that it does
// not give us, or a registry that does not answer, is called that.
func pullError(image string, auth *registry.AuthConfig, err error) error {
	if err == nil {
		return nil
	}
	domain := "of the image"
	if named, perr := reference.ParseNormalizedNamed(image); perr == nil {
		domain = reference.Domain(named)
	}
	const again = `run "docker login %s" where you manage the swarm, then "docker service update --with-registry-auth" with this service`
	class := api.ClassOf(err)
	switch {
	case class != api.PermissionDenied && class != api.Unauthenticated:
	case auth == nil:
		return api.Errorf(class, "access to %s was denied by the registry %s: the service has no login for it: "+again+": %w", image, domain, domain, err)
	default:
		return api.Errorf(class, "access to %s was denied by the registry %s, in spite of the service's login for it: "+again+": %w", image, domain, domain, err)
	}
	if class == api.NotFound {
		return api.Errorf(class, "No such image: %s: it is not on this node, and could not be pulled: %w", image, err)
	}
	return api.Errorf(class, "the image %s is not on this node, and could not be pulled: %w", image, err)
}
