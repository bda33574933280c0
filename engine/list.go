package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// ContainerList lists containers, newest first.
func (e *Engine) ContainerList(ctx context.Context, o ContainerListOptions) ([]container.Summary, error) {
	keep, err := e.listFilter(ctx, &o)
	if err != nil {
		return nil, err
	}
	list := []container.Summary{}
	for _, c := range e.all() {
		r := c.shown()
		if r.Phase == phaseMaking || !keep(c, &r) {
			continue
		}
		s := e.summary(c, &r)
		if o.Size {
			if s.SizeRw, s.SizeRootFs, err = e.sizes(ctx, &r); err != nil {
				return nil, err
			}
		}
		list = append(list, s)
		if o.Limit > 0 && len(list) == o.Limit {
			break
		}
	}
	return list, nil
}

func (e *Engine) summary(c *ctr, r *record) container.Summary {
	program, args := command(r.Config)
	s := container.Summary{
		ID: r.ID, Names: []string{"/" + r.Name}, Image: r.ImageName, ImageID: r.ImageID,
		Command: strings.Join(append([]string{program}, args...), " "), Created: r.Created.Unix(),
		Labels: r.Config.Labels, State: r.status(), Ports: portSummary(r), Mounts: mountSummary(r.Mounts),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: r.networks()},
	}
	s.HostConfig.NetworkMode = string(r.Host.NetworkMode)
	s.HostConfig.Annotations = r.Host.Annotations
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	status := container.NoHealthcheck
	s.Health = &container.HealthSummary{Status: status}
	if h != nil {
		rep := h.report()
		status = rep.Status
		s.Health = &container.HealthSummary{Status: rep.Status, FailingStreak: rep.FailingStreak}
	}
	s.Status = statusText(r, status, e.cfg.Now())
	return s
}

// statusText is the STATUS column of docker ps.
func statusText(r *record, h container.HealthStatus, now time.Time) string {
	since := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch r.status() {
	case container.StatePaused:
		return "Up " + since(r.StartedAt) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", r.ExitCode, since(r.FinishedAt))
	case container.StateRunning:
		s := "Up " + since(r.StartedAt)
		switch h {
		case container.NoHealthcheck, "":
		case container.Starting:
			s += " (health: starting)"
		default:
			s += " (" + string(h) + ")"
		}
		return s
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", r.ExitCode, since(r.FinishedAt))
	case container.StateCreated:
	}
	return "Created"
}

func portSummary(r *record) []container.PortSummary {
	list := []container.PortSummary{}
	seen := map[network.Port]bool{}
	for p, bindings := range r.Ports {
		seen[p] = true
		public := false
		for _, b := range bindings {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil { // that of a routed network: it has none of the host's
				continue
			}
			public = true
			list = append(list, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(n), Type: string(p.Proto())})
		}
		if !public {
			list = append(list, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	for p := range r.exposed() {
		if !seen[p] {
			list = append(list, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(list, func(a, b container.PortSummary) int {
		if a.PrivatePort != b.PrivatePort {
			return int(a.PrivatePort) - int(b.PrivatePort)
		}
		return strings.Compare(a.IP.String(), b.IP.String())
	})
	return list
}

// predicate reports whether a container is wanted.
type predicate func(c *ctr, r *record) bool

// listFilter turns options into one predicate. Unknown filters are Invalid.
func (e *Engine) listFilter(ctx context.Context, o *ContainerListOptions) (predicate, error) {
	f := o.Filters
	var all []predicate
	for key, values := range f {
		if len(values) == 0 {
			continue
		}
		p, err := e.filterFor(ctx, key, values)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	// Only what runs is listed, unless a filter can mean something else.
	if !o.All && o.Limit <= 0 && len(f["status"]) == 0 && len(f["exited"]) == 0 {
		all = append(all, func(_ *ctr, r *record) bool { return r.Phase == phaseRunning || r.Restarting })
	}
	return func(c *ctr, r *record) bool {
		for _, p := range all {
			if !p(c, r) {
				return false
			}
		}
		return true
	}, nil
}

func (e *Engine) filterFor(ctx context.Context, key string, values []string) (predicate, error) {
	any := func(ok func(r *record, v string) bool) predicate {
		return func(_ *ctr, r *record) bool {
			return slices.ContainsFunc(values, func(v string) bool { return ok(r, v) })
		}
	}
	switch key {
	case "id":
		return any(func(r *record, v string) bool { return strings.HasPrefix(r.ID, v) || api.MatchesAny([]string{v}, r.ID) }), nil
	case "name":
		return func(_ *ctr, r *record) bool { return api.MatchesAny(values, r.Name, "/"+r.Name) }, nil
	case "label":
		return func(_ *ctr, r *record) bool { return hasLabels(r.Config.Labels, values) }, nil
	case "annotation":
		return func(_ *ctr, r *record) bool { return hasLabels(r.Host.Annotations, values) }, nil
	case "status":
		for _, v := range values {
			if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
				return nil, api.Errorf(api.Invalid, "%w", err)
			}
		}
		return any(func(r *record, v string) bool { return string(r.status()) == v }), nil
	case "exited":
		for _, v := range values {
			if _, err := strconv.Atoi(v); err != nil {
				return nil, api.Errorf(api.Invalid, "invalid filter 'exited=%s'", v)
			}
		}
		return any(func(r *record, v string) bool {
			n, _ := strconv.Atoi(v)
			return r.ExitCode == n && r.Phase == phaseExited && !r.Restarting
		}), nil
	case "volume":
		return any(func(r *record, v string) bool {
			return slices.ContainsFunc(r.Mounts, func(m mountPoint) bool { return m.Name == v && v != "" || m.Destination == v || m.Source == v })
		}), nil
	case "network":
		return any(func(r *record, v string) bool {
			for name, ep := range r.networks() {
				if name == v || ep.NetworkID != "" && strings.HasPrefix(ep.NetworkID, v) {
					return true
				}
			}
			return string(r.Host.NetworkMode) == v
		}), nil
	case "before", "since":
		return e.ageFilter(key, values)
	case "ancestor":
		return e.ancestorFilter(ctx, values), nil
	case "publish", "expose":
		return portFilter(key, values)
	case "health":
		return healthFilter(values)
	case "is-task":
		b, err := boolFilter(api.Filters{key: values}, key)
		if err != nil {
			return nil, err
		}
		return func(_ *ctr, r *record) bool { return r.Managed == *b }, nil
	case "isolation":
		return func(*ctr, *record) bool { return true }, nil
	}
	return nil, api.Errorf(api.Invalid, "invalid filter '%s'", key)
}

func (e *Engine) ageFilter(key string, values []string) (predicate, error) {
	if len(values) > 1 {
		return nil, api.Errorf(api.Invalid, "the filter %s takes one container", key)
	}
	c, err := e.find(values[0])
	if err != nil {
		return nil, err
	}
	at := c.snapshot().Created
	return func(_ *ctr, r *record) bool {
		if key == "before" {
			return r.Created.Before(at)
		}
		return r.Created.After(at)
	}, nil
}

func (e *Engine) ancestorFilter(ctx context.Context, values []string) predicate {
	ids, names := map[string]bool{}, map[string]bool{}
	for _, v := range values {
		names[v] = true
		if n, err := reference.ParseNormalizedNamed(v); err == nil {
			names[reference.FamiliarString(reference.TagNameOnly(n))] = true
		}
		if img, err := e.cfg.Images.Resolve(ctx, v); err == nil {
			ids[img.ID] = true
		}
	}
	return func(_ *ctr, r *record) bool { return ids[r.ImageID] || names[r.ImageName] }
}

func portFilter(key string, values []string) (predicate, error) {
	var ranges []network.PortRange
	for _, v := range values {
		p, err := network.ParsePortRange(v)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "error while looking up for %s %s: %w", key, v, err)
		}
		ranges = append(ranges, p)
	}
	in := func(p network.Port, n uint16) bool {
		return slices.ContainsFunc(ranges, func(r network.PortRange) bool {
			return r.Proto() == p.Proto() && n >= r.Start() && n <= r.End()
		})
	}
	return func(_ *ctr, r *record) bool {
		if key == "expose" {
			for p := range r.Config.ExposedPorts {
				if in(p, p.Num()) {
					return true
				}
			}
			return false
		}
		for p, list := range r.Ports {
			if len(list) > 0 && in(p, p.Num()) {
				return true
			}
			for _, b := range list {
				if n, err := strconv.ParseUint(b.HostPort, 10, 16); err == nil && in(p, uint16(n)) {
					return true
				}
			}
		}
		return false
	}, nil
}

func healthFilter(values []string) (predicate, error) {
	for _, v := range values {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return nil, api.Errorf(api.Invalid, "%w", err)
		}
	}
	return func(c *ctr, _ *record) bool {
		c.mu.Lock()
		h := c.health
		c.mu.Unlock()
		s := container.NoHealthcheck
		if h != nil {
			s = h.status()
		}
		return slices.Contains(values, string(s))
	}, nil
}
