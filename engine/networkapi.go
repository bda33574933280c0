package engine

import (
	"context"
	"maps"
	"net/netip"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

func utoa64(n uint64) string { return strconv.FormatUint(n, 10) }

// overlayConfig puts what is set in more over a config, for commits.
func overlayConfig(c container.Config, more *container.Config) container.Config {
	if more.User != "" {
		c.User = more.User
	}
	if len(more.Cmd) > 0 {
		c.Cmd = more.Cmd
	}
	if len(more.Entrypoint) > 0 {
		c.Entrypoint = more.Entrypoint
	}
	if more.WorkingDir != "" {
		c.WorkingDir = more.WorkingDir
	}
	if len(more.Env) > 0 {
		c.Env = mergeEnv(c.Env, more.Env)
	}
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, more.Labels)
	c.Labels = labels
	if len(more.ExposedPorts) > 0 {
		c.ExposedPorts = more.ExposedPorts
	}
	if len(more.Volumes) > 0 {
		c.Volumes = more.Volumes
	}
	return c
}

// NetworkConnect puts a container in one more network; one that does not run
// joins it when it starts.
func (e *Engine) NetworkConnect(ctx context.Context, net, name string, ep *network.EndpointSettings) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	r := c.snapshot()
	if r.Phase == phaseRemoving || r.Phase == phaseDead {
		return api.Errorf(api.Conflict, "container %s is marked for removal and cannot be connected to a network", c.id)
	}
	if r.Host.NetworkMode.IsContainer() || r.Host.NetworkMode.IsHost() {
		return api.Errorf(api.Conflict, "container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if n, known := e.cfg.Networks.Known(net); known {
		net = n.Name
	}
	if _, in := endpointKey(r.networks(), net); in && r.Phase == phaseRunning {
		return api.Errorf(api.PermissionDenied, "endpoint with name %s already exists in network %s", r.Name, net)
	}
	if ep == nil {
		ep = &network.EndpointSettings{}
	}
	asked := ep.Copy()
	asked.IPAddress, asked.GlobalIPv6Address = netip.Addr{}, netip.Addr{} // what IPAMConfig says is what is asked for
	var given *network.EndpointSettings
	if r.Phase == phaseRunning {
		ep = asked.Copy()
		ep.DNSNames = dnsNames(&r, net, ep)
		if given, err = e.cfg.Networks.Connect(ctx, c.id, net, ep); err != nil {
			return err
		}
		if n, known := e.cfg.Networks.Known(given.NetworkID); known {
			net = n.Name // one of the swarm's is known from now on
		}
		c.noteInHosts(&r, given, true)
		if len(given.DNSNames) > 0 {
			if err := c.embedResolver(&r); err != nil {
				e.cfg.Log.Warn("a container's resolv.conf could not be changed; it won't find others by name until it is started anew", "container", c.id, "error", err)
			}
		}
	}
	err = c.change(func(r *record) {
		r.Endpoints = maps.Clone(r.Endpoints)
		delete(r.Endpoints, network.NetworkNone)
		r.Endpoints[net] = asked
		if given != nil {
			r.Joined = maps.Clone(r.Joined)
			if r.Joined == nil {
				r.Joined = map[string]*network.EndpointSettings{}
			}
			delete(r.Joined, network.NetworkNone)
			r.Joined[net] = given
			r.Ports = e.cfg.Networks.Published(c.id)
			r.see(e.cfg.Networks.Known)
		}
	})
	if err != nil {
		return err
	}
	now := c.snapshot()
	c.networkEvent(events.ActionConnect, net, now.seen(net))
	return nil
}

// NetworkDisconnect takes a container out of a network, which may be gone by now. With
// force it is no error that the data plane does not know of it.
func (e *Engine) NetworkDisconnect(ctx context.Context, net, name string, force bool) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	r := c.snapshot()
	key, ok := endpointKey(r.networks(), net)
	if n, known := e.cfg.Networks.Known(net); !ok && known { // by the beginning of its id
		key, ok = endpointKey(r.networks(), n.ID)
	}
	if !ok {
		return api.Errorf(api.Invalid, "container %s is not connected to the network %s", c.id, net)
	}
	if r.Host.NetworkMode.IsHost() && key == network.NetworkHost {
		return api.Errorf(api.Conflict, "container cannot be disconnected from host network or connected to host network")
	}
	if r.Phase == phaseRunning {
		if err := e.cfg.Networks.Disconnect(ctx, c.id, net, force); err != nil {
			return err
		}
		if ep := r.Joined[key]; ep != nil {
			c.noteInHosts(&r, ep, false)
		}
	}
	seen := r.seen(key)
	err = c.change(func(r *record) {
		r.Endpoints = maps.Clone(r.Endpoints)
		maps.DeleteFunc(r.Endpoints, func(wanted string, _ *network.EndpointSettings) bool { return wanted == key || wanted == seen.ID })
		r.Seen = maps.Clone(r.Seen)
		delete(r.Seen, key)
		if r.Joined != nil {
			r.Joined = maps.Clone(r.Joined)
			delete(r.Joined, key)
		}
		if r.Phase == phaseRunning {
			r.Ports = e.cfg.Networks.Published(c.id)
		}
		if len(r.Endpoints) == 0 {
			r.Endpoints[network.NetworkNone] = &network.EndpointSettings{}
		}
	})
	if err != nil {
		return err
	}
	c.networkEvent(events.ActionDisconnect, key, seen)
	return nil
}

// endpointKey finds a network by name or id.
func endpointKey(eps map[string]*network.EndpointSettings, net string) (string, bool) {
	if _, ok := eps[net]; ok {
		return net, true
	}
	for name, ep := range eps {
		if ep.NetworkID == net {
			return name, true
		}
	}
	return "", false
}
