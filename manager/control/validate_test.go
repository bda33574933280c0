package control

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
)

// Each spec is refused for what is wrong with it, in words.
func TestValidateService(t *testing.T) {
	for want, breakIt := range map[string]func(*swarm.ServiceSpec){
		"name must be provided":  func(s *swarm.ServiceSpec) { s.Name = "" },
		"valid as a DNS name":    func(s *swarm.ServiceSpec) { s.Name = "no good!" },
		"63 characters or fewer": func(s *swarm.ServiceSpec) { s.Name = strings.Repeat("x", 64) },
		"label without a name":   func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"": "x"} },
		"labels take":            func(s *swarm.ServiceSpec) { s.Labels = map[string]string{"x": strings.Repeat("x", maxLabels)} },
		"only one service mode": func(s *swarm.ServiceSpec) {
			s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}, Replicated: &swarm.ReplicatedService{}}
		},
		"at most 1000000": func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1 << 40))}
		},
		"missing runtime":         func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil },
		"image reference must be": func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "" },
		"valid repository/tag":    func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "no image" },
		"invalid constraint": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role~manager"}}
		},
		"unknown key \"node.name\"": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.name==x"}}
		},
		"needs a label to spread over": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{}}}}
		},
		"restart condition": func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "maybe"} },
		"restart-delay": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: new(-time.Second)}
		},
		"restart-window": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Window: new(-time.Second)}
		},
		"update-delay":            func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Delay: -1} },
		"rollback-monitor":        func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{Monitor: -1} },
		"update-maxfailureratio":  func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{MaxFailureRatio: 2} },
		"rollback failure action": func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{FailureAction: "rollback"} },
		"update order":            func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{Order: "random"} },
		"invalid cpu value": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 5}}
		},
		"invalid memory value": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 20}}
		},
		"invalid pids limit": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{Pids: -2}}
		},
		"environment variable": func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{"=x"} },
		"invalid isolation":    func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Isolation = "foo" },
		"stop-grace-period":    func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.StopGracePeriod = new(-time.Second) },
		"Interval in HealthConfig": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Interval: time.Microsecond}
		},
		"Retries in HealthConfig": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Healthcheck = &container.HealthConfig{Retries: -1}
		},
		"absolute path": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "bind", Source: "/x", Target: "y"}}
		},
		"invalid bind mount": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "bind", Source: "x", Target: "/y"}}
		},
		"duplicate mount point": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "tmpfs", Target: "/y"}, {Type: "volume", Target: "/y"}}
		},
		"unknown mount type": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "floppy", Target: "/y"}}
		},
		"endpoint mode": func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: "anycast"} },
		"duplicate published": func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 1, PublishedPort: 2}, {TargetPort: 3, PublishedPort: 2}}}
		},
		"invalid target port": func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 2}}}
		},
		"dnsrr": func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr", Ports: []swarm.PortConfig{{TargetPort: 1, PublishMode: "ingress"}}}
		},
		"conflicting target": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{secret("a", "f"), secret("b", "f")}
		},
		"no target provided": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "a", SecretName: "a"}}
		},
		"generic resource": func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: []swarm.GenericResource{{}}}}
		},
	} {
		s := spec("web")
		breakIt(s)
		if err := ValidateService(s); err == nil || !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if err := ValidateService(spec("web_1-x")); err != nil {
		t.Error(err)
	}
}

func secret(name, file string) *swarm.SecretReference {
	return &swarm.SecretReference{SecretID: name, SecretName: name, File: &swarm.SecretReferenceFileTarget{Name: file}}
}

// TestValidateName holds it against the rule as Docker has it.
func TestValidateName(t *testing.T) {
	rule := regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringOfN(rapid.RuneFrom([]rune("aZ09-_.\n é/")), 1, 8, -1).Draw(t, "name")
		if err := validateName(name); (err == nil) != rule.MatchString(name) {
			t.Errorf("%q: %v", name, err)
		}
	})
}
