package dispatcher

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/templates"
)

const (
	// expandPatience bounds the expansion of a task's names, which is bounded by work
	// too.
	expandPatience = 100 * time.Millisecond
	// maxOwnNames bounds for how many tasks it is kept what templates made of their
	// names; beyond that it begins anew.
	maxOwnNames = 1 << 14
)

// ownNames are the names, besides its own, that a task alone has in a network: its
// host name, and aliases that templates made of the service's. What templates make is
// kept as long as the task is the same, since each node is told. The zero value is
// ready; it is safe for concurrent use.
type ownNames struct {
	mu       sync.Mutex
	expanded map[nameKey]*expandedNames
}

type nameKey struct{ task, network string }

// expandedNames are what templates made of these.
type expandedNames struct {
	task     *api.Task
	hostname string
	platform swarm.Platform
	names    func() ([]string, error) // once
}

func (o *ownNames) of(t *api.Task, a *api.NetworkAttachment, node *api.Node) []string {
	if t.ServiceID == "" {
		return a.Aliases
	}
	c := t.Spec.ContainerSpec
	own := slices.DeleteFunc(slices.Clone(a.Aliases), func(s string) bool { return !templated(s) })
	if c == nil || c.Hostname == "" && len(own) == 0 {
		return nil
	}
	if !templated(c.Hostname) && len(own) == 0 {
		return []string{c.Hostname}
	}
	e := &expandedNames{task: t}
	if node != nil {
		e.hostname, e.platform = node.Description.Hostname, node.Description.Platform
	}
	names, err := o.kept(nameKey{t.ID, a.NetworkID}, e, own).names()
	if err != nil { // of time, it may be: it is tried again
		o.mu.Lock()
		delete(o.expanded, nameKey{t.ID, a.NetworkID})
		o.mu.Unlock()
	}
	return names
}

// kept returns e, or what it is the same as.
func (o *ownNames) kept(k nameKey, e *expandedNames, aliases []string) *expandedNames {
	o.mu.Lock()
	defer o.mu.Unlock()
	if was := o.expanded[k]; was != nil && was.task == e.task && was.hostname == e.hostname && was.platform == e.platform {
		return was
	}
	if o.expanded == nil || len(o.expanded) >= maxOwnNames {
		o.expanded = map[nameKey]*expandedNames{}
	}
	o.expanded[k] = e
	e.names = sync.OnceValues(func() ([]string, error) {
		return expandNames(templates.Of(e.task, e.hostname, e.platform), e.task.Spec.ContainerSpec.Hostname, aliases)
	})
	return e
}

// expandNames returns what can be expanded; the rest is no name: the node refuses to
// run the task.
func expandNames(values *templates.Values, hostname string, aliases []string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), expandPatience)
	defer cancel()
	if hostname != "" {
		s, failed := values.Expand(ctx, &swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Hostname: hostname}}, nil)
		if err = failed; err == nil {
			names = append(names, s.ContainerSpec.Hostname)
		}
	}
	l, failed := values.Networks(ctx, []api.NetworkAttachment{{Aliases: aliases}})
	if failed != nil {
		return names, failed
	}
	return append(names, l[0].Aliases...), err
}

// templated names are of a task alone.
func templated(name string) bool { return strings.Contains(name, "{{") }
