package control

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Limits of Docker's, and on what a spec can make the store grow.
const (
	maxNameLength = 63 // a DNS label
	minCPUs       = 1e6
	minMemory     = 4 << 20
	minHealth     = time.Millisecond
	maxReplicas   = 1_000_000
	maxLabels     = 1 << 20
)

func invalid(format string, args ...any) error { return api.Errorf(api.Invalid, format, args...) }

// ValidateService checks a service's spec by itself. Every error is of class
// Invalid, or Unimplemented, and names the field.
func ValidateService(s *swarm.ServiceSpec) error {
	if err := validateName(s.Name); err != nil {
		return err
	}
	if err := validateLabels(s.Labels); err != nil {
		return err
	}
	if _, err := api.ParsePolicy(s.Labels); err != nil {
		return err
	}
	if err := validateMode(&s.Mode); err != nil {
		return err
	}
	if err := validateJob(s); err != nil {
		return err
	}
	for what, u := range map[string]*swarm.UpdateConfig{"update": s.UpdateConfig, "rollback": s.RollbackConfig} {
		if err := validateUpdate(what, u); err != nil {
			return err
		}
	}
	if err := validateEndpoint(s); err != nil {
		return err
	}
	if err := validateTask(&s.TaskTemplate); err != nil {
		return err
	}
	return validateTemplates(s)
}

func validateName(name string) error {
	switch {
	case name == "":
		return invalid("name must be provided")
	case len(name) > maxNameLength:
		return invalid("name must be %d characters or fewer, not %d: %s…", maxNameLength, len(name), name[:maxNameLength])
	case !alnum(name[0]) || !alnum(name[len(name)-1]) || strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII || !alnum(byte(r)) && r != '-' && r != '_' }):
		return invalid("name must be valid as a DNS name component: %q has other characters than letters, digits, - and _, or begins or ends with one of these", name)
	}
	return nil
}

// alnum reports whether c is a letter or digit of ASCII.
func alnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func validateLabels(labels map[string]string) error {
	n := 0
	for k, v := range labels {
		if k == "" {
			return invalid("a label without a name")
		}
		n += len(k) + len(v)
	}
	if n > maxLabels {
		return invalid("labels take %d bytes: at most %d are allowed", n, maxLabels)
	}
	return nil
}

func validateMode(m *swarm.ServiceMode) error {
	modes := 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			modes++
		}
	}
	switch {
	case modes > 1:
		return invalid("must specify only one service mode")
	case m.Replicated != nil && m.Replicated.Replicas != nil && *m.Replicated.Replicas > maxReplicas:
		return invalid("Number of replicas must be non-negative and at most %d, not %d", maxReplicas, *m.Replicated.Replicas)
	}
	return nil
}

func validateUpdate(what string, u *swarm.UpdateConfig) error {
	if u == nil {
		return nil
	}
	actions := []swarm.FailureAction{"", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue}
	if what == "update" {
		actions = append(actions, swarm.UpdateFailureActionRollback)
	}
	switch {
	case u.Delay < 0:
		return invalid("TaskSpec: %s-delay cannot be negative: %s", what, u.Delay)
	case u.Monitor < 0:
		return invalid("TaskSpec: %s-monitor cannot be negative: %s", what, u.Monitor)
	case u.MaxFailureRatio < 0 || u.MaxFailureRatio > 1:
		return invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1: %v", what, u.MaxFailureRatio)
	case !contains(actions, string(u.FailureAction)):
		return invalid("invalid %s failure action %q", what, u.FailureAction)
	case !contains([]swarm.UpdateOrder{"", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}, string(u.Order)):
		return invalid("invalid %s order %q", what, u.Order)
	}
	return nil
}

func contains[T ~string](list []T, s string) bool {
	for _, v := range list {
		if string(v) == s {
			return true
		}
	}
	return false
}

func validateEndpoint(s *swarm.ServiceSpec) error {
	e := s.EndpointSpec
	if e == nil {
		return nil
	}
	if !contains([]string{"", string(swarm.ResolutionModeVIP), string(swarm.ResolutionModeDNSRR)}, string(e.Mode)) {
		return invalid("invalid endpoint mode %q", e.Mode)
	}
	type key struct {
		protocol string
		port     uint32
	}
	seen := map[key]bool{}
	for _, p := range e.Ports {
		protocol := string(p.Protocol)
		if protocol == "" {
			protocol = "tcp"
		}
		switch {
		case !contains([]string{"tcp", "udp", "sctp"}, protocol):
			return invalid("invalid protocol %q of a published port: want tcp, udp or sctp", p.Protocol)
		case !contains([]string{"", string(swarm.PortConfigPublishModeIngress), string(swarm.PortConfigPublishModeHost)}, string(p.PublishMode)):
			return invalid("invalid publish mode %q: want ingress or host", p.PublishMode)
		case p.TargetPort == 0 || p.TargetPort > 65535:
			return invalid("invalid target port %d: want 1 to 65535", p.TargetPort)
		case p.PublishedPort > 65535:
			return invalid("invalid published port %d: want 1 to 65535, or none", p.PublishedPort)
		case e.Mode == swarm.ResolutionModeDNSRR && p.PublishMode != swarm.PortConfigPublishModeHost:
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		k := key{protocol, p.PublishedPort}
		if p.PublishedPort != 0 && seen[k] {
			return invalid("EndpointSpec: duplicate published ports provided: %d/%s", p.PublishedPort, protocol)
		}
		seen[k] = true
	}
	return nil
}

// warnings are what a valid spec asks for in vain. Docker takes preferences that
// no node can have a value for, and tools' manuals have such examples.
func warnings(s *swarm.ServiceSpec) []string {
	var w []string
	if p := s.TaskTemplate.Placement; p != nil {
		for _, p := range p.Preferences {
			if _, ok := api.NodeAttribute(&api.Node{}, p.Spread.SpreadDescriptor); !ok {
				w = append(w, fmt.Sprintf("the placement preference has no effect: nothing can be spread over %q: want node.labels.NAME or engine.labels.NAME", p.Spread.SpreadDescriptor))
			}
		}
	}
	return w
}

func validateTask(t *swarm.TaskSpec) error {
	if err := validateResources(t.Resources); err != nil {
		return err
	}
	if err := validateRestart(t.RestartPolicy); err != nil {
		return err
	}
	if t.Placement != nil {
		if _, err := api.ParseConstraints(t.Placement.Constraints); err != nil {
			return err
		}
		for _, p := range t.Placement.Preferences {
			if p.Spread == nil || p.Spread.SpreadDescriptor == "" {
				return invalid("a placement preference needs a label to spread over, as node.labels.zone")
			}
		}
	}
	switch {
	case t.PluginSpec != nil || t.Runtime == swarm.RuntimePlugin:
		return api.Errorf(api.Unimplemented, "services that run plugins are not served")
	case t.NetworkAttachmentSpec != nil || t.Runtime == swarm.RuntimeNetworkAttachment:
		return api.Errorf(api.Unimplemented, "services that attach networks are not served")
	case t.Runtime != "" && t.Runtime != swarm.RuntimeContainer:
		return invalid("unknown runtime %q: want container", t.Runtime)
	case t.ContainerSpec == nil:
		return invalid("TaskSpec: missing runtime: TaskTemplate.ContainerSpec is needed")
	}
	return validateContainer(t.ContainerSpec)
}

func validateResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	var cpu, memory []int64
	if l := r.Limits; l != nil {
		cpu, memory = append(cpu, l.NanoCPUs), append(memory, l.MemoryBytes)
		if l.Pids < -1 {
			return invalid("invalid pids limit %d: must be positive, or 0 or -1 (no limit)", l.Pids)
		}
	}
	if v := r.Reservations; v != nil {
		cpu, memory = append(cpu, v.NanoCPUs), append(memory, v.MemoryBytes)
		for _, g := range v.GenericResources {
			if d := g.DiscreteResourceSpec; d == nil || d.Kind == "" || d.Value <= 0 {
				return invalid("invalid generic resource reservation: want a kind and a positive number")
			}
		}
	}
	for _, n := range cpu {
		if n < 0 || n != 0 && n < minCPUs {
			return invalid("invalid cpu value %g: Must be at least %g", float64(n)/1e9, minCPUs/1e9)
		}
	}
	for _, n := range memory {
		if n < 0 || n != 0 && n < minMemory {
			return invalid("invalid memory value %d: Must be at least 4MiB", n)
		}
	}
	if s := r.MemorySwappiness; s != nil && (*s < -1 || *s > 100) {
		return invalid("invalid memory swappiness %d: want -1 to 100", *s)
	}
	if s := r.SwapBytes; s != nil && *s < -1 {
		return invalid("invalid swap bytes %d: want -1 (no limit) or more", *s)
	}
	return nil
}

func validateRestart(r *swarm.RestartPolicy) error {
	if r == nil {
		return nil
	}
	switch {
	case !contains([]string{"", "none", "on-failure", "any"}, string(r.Condition)):
		return invalid("invalid restart condition %q: want none, on-failure or any", r.Condition)
	case r.Delay != nil && *r.Delay < 0:
		return invalid("TaskSpec: restart-delay cannot be negative: %s", *r.Delay)
	case r.Window != nil && *r.Window < 0:
		return invalid("TaskSpec: restart-window cannot be negative: %s", *r.Window)
	}
	return nil
}

func validateContainer(c *swarm.ContainerSpec) error {
	if c.Image == "" {
		return invalid("ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		if _, err := reference.ParseAnyReference(c.Image); err != nil {
			return invalid("ContainerSpec: %q is not a valid repository/tag", c.Image)
		}
	}
	if err := validateLabels(c.Labels); err != nil {
		return err
	}
	for _, e := range c.Env {
		if k, _, _ := strings.Cut(e, "="); k == "" {
			return invalid("ContainerSpec: invalid environment variable: %q has no name", e)
		}
	}
	if i := c.Isolation; !i.IsDefault() && !i.IsProcess() && !i.IsHyperV() {
		return invalid("ContainerSpec: invalid isolation %q: want default (process and hyperv are of Windows)", i)
	}
	if c.StopGracePeriod != nil && *c.StopGracePeriod < 0 {
		return invalid("ContainerSpec: stop-grace-period cannot be negative: %s", *c.StopGracePeriod)
	}
	if err := validateFiles(c); err != nil {
		return err
	}
	if err := validateCredentials(c); err != nil {
		return err
	}
	return validateHealth(c.Healthcheck)
}

func validateMounts(mounts []mount.Mount) error {
	seen := map[string]bool{}
	for _, m := range mounts {
		switch {
		case m.Target == "" || m.Target[0] != '/':
			return invalid("ContainerSpec: invalid mount target %q: must be an absolute path", m.Target)
		case seen[m.Target]:
			return invalid("ContainerSpec: duplicate mount point: %s", m.Target)
		case m.Type == mount.TypeBind && (m.Source == "" || m.Source[0] != '/'):
			return invalid("invalid bind mount source, must be an absolute path: %q", m.Source)
		case m.Type == mount.TypeVolume && strings.HasPrefix(m.Source, "/"):
			return invalid("invalid volume mount source, must not be an absolute path: %s", m.Source)
		case m.Type == mount.TypeTmpfs && m.Source != "":
			return invalid("invalid tmpfs source, source must be empty: %s", m.Source)
		case m.Type == mount.TypeImage && m.Source == "":
			return invalid("invalid image mount source: an image must be named")
		case m.Type == mount.TypeCluster:
			return api.Errorf(api.Unimplemented, "cluster volumes are not served yet")
		case !contains([]string{string(mount.TypeBind), string(mount.TypeVolume), string(mount.TypeTmpfs), string(mount.TypeImage)}, string(m.Type)):
			return invalid("unknown mount type %q: want bind, volume, tmpfs or image", m.Type)
		}
		seen[m.Target] = true
	}
	return nil
}

func validateHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < minHealth {
			return invalid("ContainerSpec: %s in HealthConfig cannot be less than 1ms: %s", name, d)
		}
	}
	if h.Retries < 0 {
		return invalid("ContainerSpec: Retries in HealthConfig cannot be negative: %d", h.Retries)
	}
	return nil
}
