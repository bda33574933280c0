package engine

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func validAddr(s string) bool {
	_, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil
}

// mergeImage completes a container's config with what its image says. It
// returns a copy.
func mergeImage(in *container.Config, img *Image) *container.Config {
	c := *in
	ic := img.Config.Config
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd = slices.Clone(ic.Cmd)
		}
		if c.Entrypoint == nil {
			c.Entrypoint = slices.Clone(ic.Entrypoint)
		}
	} else if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil // the image's is not wanted
	}
	c.Env = imageEnv(ic.Env, c.Env)
	if c.User == "" {
		c.User = ic.User
	}
	if c.WorkingDir == "" {
		c.WorkingDir = ic.WorkingDir
	}
	if c.StopSignal == "" {
		c.StopSignal = ic.StopSignal
	}
	if len(c.Shell) == 0 {
		c.Shell = img.Docker.Shell
	}
	labels := maps.Clone(ic.Labels)
	if labels == nil {
		labels = make(map[string]string, len(c.Labels))
	}
	maps.Copy(labels, c.Labels)
	c.Labels = labels
	if len(ic.ExposedPorts) > 0 {
		ports := make(network.PortSet, len(ic.ExposedPorts)+len(c.ExposedPorts))
		for s := range ic.ExposedPorts {
			if p, err := network.ParsePort(s); err == nil {
				ports[p] = struct{}{}
			}
		}
		maps.Copy(ports, c.ExposedPorts)
		c.ExposedPorts = ports
	}
	if len(ic.Volumes) > 0 {
		vols := maps.Clone(ic.Volumes)
		maps.Copy(vols, c.Volumes)
		c.Volumes = vols
	}
	c.Healthcheck = mergeHealth(c.Healthcheck, img.Docker.Healthcheck)
	return &c
}

func mergeHealth(own, image *HealthConfig) *HealthConfig {
	if own == nil || image == nil {
		if own == nil {
			return image
		}
		return own
	}
	h := *own
	if len(h.Test) == 0 {
		h.Test = image.Test
	}
	if h.Interval == 0 {
		h.Interval = image.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = image.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = image.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = image.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = image.Retries
	}
	return &h
}

// imageEnv returns own variables followed, as Docker shows them, by those of the
// image that own neither sets nor, by a NAME without a value, unsets.
func imageEnv(image, own []string) []string {
	out := mergeEnv(nil, own)
	for _, v := range image {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(own, func(o string) bool { k, _, _ := strings.Cut(o, "="); return k == name }) {
			out = append(out, v)
		}
	}
	return out
}

// mergeEnv puts variables of more over those of base. NAME without a value
// unsets.
func mergeEnv(base, more []string) []string {
	out := make([]string, 0, len(base)+len(more))
	at := make(map[string]int, len(base)+len(more))
	for _, v := range base {
		k, _, _ := strings.Cut(v, "=")
		at[k] = len(out)
		out = append(out, v)
	}
	for _, v := range more {
		k, _, valued := strings.Cut(v, "=")
		i, known := at[k]
		switch {
		case !valued && known:
			out[i] = ""
			delete(at, k)
		case !valued:
		case known:
			out[i] = v
		default:
			at[k] = len(out)
			out = append(out, v)
		}
	}
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

// command returns the program and its arguments.
func command(c *container.Config) (program string, args []string) {
	all := slices.Concat(c.Entrypoint, c.Cmd)
	if len(all) == 0 {
		return "", nil
	}
	return all[0], all[1:]
}
