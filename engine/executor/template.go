package executor

import (
	"bytes"
	"strconv"
	"strings"
	"text/template"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// values is what templates in a service can name, as Docker has it.
type values struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     swarm.Platform
	}
	Task struct{ ID, Name, Slot string }
}

func valuesOf(t *api.Task, hostname string, platform swarm.Platform) *values {
	v := &values{}
	v.Service.ID, v.Service.Name, v.Service.Labels = t.ServiceID, t.Spec.ServiceName, t.Spec.ServiceLabels
	v.Node.ID, v.Node.Hostname, v.Node.Platform = t.NodeID, hostname, platform
	v.Task.ID, v.Task.Name, v.Task.Slot = t.ID, t.Name(), strconv.Itoa(t.Slot)
	if t.Spec.Global {
		v.Task.Slot = t.NodeID
	}
	return v
}

// expand fills a template in; text without one is returned as it is.
func (v *values) expand(what, text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New(what).Option("missingkey=error").Parse(text)
	if err != nil {
		return "", api.Errorf(api.Invalid, "invalid template in %s: %w", what, err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return "", api.Errorf(api.Invalid, "expanding the template in %s: %w", what, err)
	}
	return b.String(), nil
}

// expandSpec returns the spec with the templates of its host name, variables
// and mounts filled in.
func (v *values) expandSpec(in *swarm.ContainerSpec) (*swarm.ContainerSpec, error) {
	cs := *in
	var err error
	if cs.Hostname, err = v.expand("the host name", cs.Hostname); err != nil {
		return nil, err
	}
	cs.Env = make([]string, len(in.Env))
	for i, e := range in.Env {
		if cs.Env[i], err = v.expand("a variable", e); err != nil {
			return nil, err
		}
	}
	cs.Mounts = append([]mount.Mount(nil), in.Mounts...)
	for i := range cs.Mounts {
		m := &cs.Mounts[i]
		if m.Source, err = v.expand("a mount's source", m.Source); err != nil {
			return nil, err
		}
		if m.Target, err = v.expand("a mount's target", m.Target); err != nil {
			return nil, err
		}
	}
	return &cs, nil
}
