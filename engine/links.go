package engine

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

// A container in the default bridge network, where no names are answered, finds those
// that it links to (--link) by its hosts. In users' networks a link is a name, which
// package network answers.

// splitLink splits a link, NAME or NAME:ALIAS; in what inspect shows, both are paths.
func splitLink(l string) (name, alias string) {
	name, alias, _ = strings.Cut(l, ":")
	if alias == "" {
		alias = name
	}
	return strings.TrimPrefix(name, "/"), path.Base(alias)
}

// hasLinks reports whether hosts are to tell of other containers.
func (r *record) hasLinks() bool { return len(r.Host.Links) > 0 && r.Host.NetworkMode.IsBridge() }

// checkLinks refuses to start a container that links to one which does not run, or is
// not in the default network. One that is started by its restart policy may be there
// first: its hosts follow.
func (e *Engine) checkLinks(r *record) error {
	if !r.hasLinks() {
		return nil
	}
	for _, l := range r.Host.Links {
		name, alias := splitLink(l)
		c, err := e.findOther(name)
		if err != nil {
			return api.Errorf(api.ClassOf(err), "could not get container for %s: %w", name, err)
		}
		switch other := c.shown(); {
		case other.Phase != phaseRunning:
			return api.Errorf(api.Conflict, "Cannot link to a non running container: /%s AS /%s/%s", other.Name, r.Name, alias)
		case other.Joined[network.NetworkBridge] == nil:
			return api.Errorf(api.Conflict, "Cannot link to /%s, as it does not belong to the default network", other.Name)
		}
	}
	return nil
}

// linkLines are what hosts has for the containers that one links to.
func (e *Engine) linkLines(r *record) string {
	if !r.hasLinks() {
		return ""
	}
	var b strings.Builder
	for _, l := range r.Host.Links {
		name, alias := splitLink(l)
		if c, err := e.find(name); err == nil {
			other := c.snapshot()
			b.WriteString(linesOf(&other, alias))
		}
	}
	return b.String()
}

// linesOf has a container's addresses in the default network with its alias, host name
// and name; nothing, if it is not there.
func linesOf(other *record, alias string) string {
	ep := other.Joined[network.NetworkBridge]
	if ep == nil {
		return ""
	}
	names := []string{alias}
	for _, n := range []string{other.Config.Hostname, other.Name} {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	var b strings.Builder
	for _, a := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
		if a.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", a, strings.Join(names, " "))
		}
	}
	return b.String()
}

// tellLinked has the hosts of running containers that link to this one follow where it
// is now.
func (c *ctr) tellLinked() {
	for _, p := range c.e.all() {
		r := p.snapshot()
		if p == c || r.Phase != phaseRunning || !r.hasLinks() || !slices.ContainsFunc(r.Host.Links, c.isLinkOf) {
			continue
		}
		c.e.spawn(func(ctx context.Context) { p.followLinks(ctx, c) }) // p may be busy, even waiting for c
	}
}

// isLinkOf reports whether a link leads to this container.
func (c *ctr) isLinkOf(l string) bool {
	name, _ := splitLink(l)
	other, err := c.e.find(name)
	return err == nil && other == c
}

// followLinks puts anew what the container's hosts says of another one.
func (c *ctr) followLinks(ctx context.Context, other *ctr) {
	if c.begin(ctx) != nil {
		return
	}
	defer c.end()
	r, to := c.snapshot(), other.snapshot()
	if r.Phase != phaseRunning {
		return
	}
	file := filepath.Join(c.dir, hostsFile)
	have, err := os.ReadFile(file)
	if err == nil {
		text := string(have)
		for _, l := range r.Host.Links {
			if other.isLinkOf(l) {
				_, alias := splitLink(l)
				text = withLink(text, alias, to.Config.Hostname, linesOf(&to, alias))
			}
		}
		err = os.WriteFile(file, []byte(text), 0o644) // in place: the file is mounted
	}
	if err != nil {
		c.e.cfg.Log.Warn("a container's hosts could not be changed", "container", c.id, "error", err)
	}
}

// withLink returns a text of hosts with other lines for a link: those that have its
// alias and the container's host name are its old ones.
func withLink(text, alias, hostname, lines string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		old := len(f) > 2 && f[1] == alias && f[2] == hostname ||
			len(f) > 1 && f[1] == alias && (hostname == "" || hostname == alias)
		if !old {
			b.WriteString(line)
		}
	}
	if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	return b.String() + lines
}

// shownLinks are a container's links as inspect shows them: /NAME:/OWN/ALIAS.
func (e *Engine) shownLinks(r *record) []string {
	if !r.hasLinks() {
		return r.Host.Links
	}
	var list []string
	for _, l := range r.Host.Links {
		name, alias := splitLink(l)
		if c, err := e.find(name); err == nil {
			list = append(list, "/"+c.snapshot().Name+":/"+r.Name+"/"+alias)
		}
	}
	return list
}
