package executor

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
)

// sent is what the managers sent.
type sent struct {
	secrets map[string]*api.Secret
	configs map[string]*api.Config
}

var _ exec.Dependencies = sent{}

func (s sent) Secret(id string) (*api.Secret, bool)   { v, ok := s.secrets[id]; return v, ok }
func (s sent) Config(id string) (*api.Config, bool)   { v, ok := s.configs[id]; return v, ok }
func (s sent) Network(id string) (*api.Network, bool) { return nil, false }

func secretOf(data, driver string) *api.Secret {
	s := &api.Secret{}
	s.Spec.Data = []byte(data)
	if driver != "" {
		s.Spec.Templating = &swarm.Driver{Name: driver}
	}
	return s
}

func configOf(data, driver string) *api.Config {
	c := &api.Config{}
	c.Spec.Data = []byte(data)
	if driver != "" {
		c.Spec.Templating = &swarm.Driver{Name: driver}
	}
	return c
}

func withFiles() *api.Task {
	return &api.Task{ID: "t1", ServiceID: "s1", NodeID: "n1", Slot: 2, Spec: &api.TaskSpec{
		ServiceName: "web",
		TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{
			Image: "app:1", Env: []string{"SLOT={{.Task.Slot}}"}, Args: []string{"--slot={{.Task.Slot}}", "{{.Names}}"}, Labels: map[string]string{"l": "{{.Node.Hostname}}"},
			Secrets: []*swarm.SecretReference{{SecretID: "s", SecretName: "pw-2", File: &swarm.SecretReferenceFileTarget{Name: "pw", UID: "7", GID: "8", Mode: 0o400}}},
			Configs: []*swarm.ConfigReference{
				{ConfigID: "c", ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "conf", Mode: 0o444}},
				{ConfigID: "r", ConfigName: "runtime", Runtime: &swarm.ConfigReferenceRuntimeTarget{}},
			},
		}, LogDriver: &swarm.Driver{Name: "json-file", Options: map[string]string{"tag": "{{.Service.Name}}/{{.Task.Slot}}"}}},
	}}
}

func TestOptionsHaveTheirTemplatesFilledIn(t *testing.T) {
	deps := sent{
		secrets: map[string]*api.Secret{"s": secretOf("s3cret", "")},
		configs: map[string]*api.Config{"c": configOf(`{{.Service.Name}} {{env "SLOT"}} {{secret "pw"}} {{secret "pw-2"}}`, "golang")},
	}
	o, err := options(t.Context(), withFiles(), deps, "host", swarm.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if o.Config.Cmd[0] != "--slot=2" || o.Config.Cmd[1] != "{{.Names}}" || o.Config.Env[0] != "SLOT=2" || o.Config.Labels["l"] != "host" || o.Host.LogConfig.Config["tag"] != "web/2" {
		t.Errorf("%+v %+v", o.Config, o.Host.LogConfig)
	}
	if len(o.Files) != 2 {
		t.Fatalf("%+v", o.Files)
	}
	pw, conf := o.Files[0], o.Files[1]
	if pw.Path != "/run/secrets/pw" || pw.UID != 7 || pw.GID != 8 || pw.Mode != 0o400 || !pw.Secret || string(pw.Data) != "s3cret" {
		t.Errorf("%+v", pw)
	}
	if conf.Path != "/conf" || string(conf.Data) != "web 2 s3cret s3cret" {
		t.Errorf("%s %s", conf.Path, conf.Data)
	}
}

func TestOptionsThatAreRefused(t *testing.T) {
	for want, change := range map[string]func(d *sent, k *api.Task){
		"secret pw-2 (s) was not sent to this node": func(d *sent, _ *api.Task) { delete(d.secrets, "s") },
		"config conf (c) was not sent to this node": func(d *sent, _ *api.Task) { delete(d.configs, "c") },
		`unrecognized template driver "other"`:      func(d *sent, _ *api.Task) { d.secrets["s"] = secretOf("x", "other") },
		"config conf: bad template":                 func(d *sent, _ *api.Task) { d.configs["c"] = configOf(`{{secret "none"}}`, "golang") },
		"too much text: more than 512000 bytes": func(d *sent, _ *api.Task) {
			d.secrets["s"] = secretOf("{{range 20000}}012345678901234567890123456789{{end}}", "golang")
		},
		"credential specs are for Windows": func(_ *sent, k *api.Task) {
			k.Spec.ContainerSpec.Privileges = &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{File: "f"}}
		},
		"ContainerSpec.Env[0] (A): bad template": func(_ *sent, k *api.Task) { k.Spec.ContainerSpec.Env = []string{"A={{.Service.Labels.none}}"} },
	} {
		deps := sent{secrets: map[string]*api.Secret{"s": secretOf("x", "")}, configs: map[string]*api.Config{"c": configOf("x", "")}}
		k := withFiles()
		change(&deps, k)
		if _, err := options(t.Context(), k, deps, "host", swarm.Platform{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestContainersShowTheirNodesPortsAlone(t *testing.T) {
	o, err := options(t.Context(), &api.Task{
		Spec: &api.TaskSpec{TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "app:1"}}},
		Ports: []swarm.PortConfig{
			{Protocol: network.TCP, TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress},
			{Protocol: network.UDP, TargetPort: 53, PublishMode: swarm.PortConfigPublishModeHost},
		},
	}, sent{}, "host", swarm.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	if shown := slices.Collect(maps.Keys(o.Config.ExposedPorts)); len(shown) != 1 || shown[0].String() != "53/udp" {
		t.Errorf("shown: %v", shown)
	}
}

// A task in a network that is routed by one family has the node's port by the other.
func TestPortStatus(t *testing.T) {
	p := network.MustParsePort("80/tcp")
	got := portStatus(network.PortMap{p: {
		{HostIP: netip.IPv4Unspecified(), HostPort: "8080"}, {HostIP: netip.MustParseAddr("10.0.0.1"), HostPort: "8080"}, {HostIP: netip.IPv6Unspecified()},
	}})
	if len(got.Ports) != 1 || got.Ports[0].PublishedPort != 8080 || got.Ports[0].TargetPort != 80 {
		t.Errorf("got %+v", got.Ports)
	}
}
