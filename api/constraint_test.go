package api

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
)

func exampleNode() *Node {
	n := &Node{Role: swarm.NodeRoleManager}
	n.ID, n.Description.Hostname, n.Status.Addr = "abc", "Box-1", "10.1.2.3"
	n.Spec.Labels = map[string]string{"zone": "a", "Zone": "B"}
	n.Description.Engine.Labels = map[string]string{"disk": "SSD"}
	n.Description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	return n
}

func TestConstraints(t *testing.T) {
	n := exampleNode()
	for expr, want := range map[string]bool{
		"node.id==abc":                   true,
		"node.id == ABC":                 true,
		"node.id!=abc":                   false,
		"node.hostname==box-1":           true,
		"node.role==manager":             true,
		"node.role!=worker":              true,
		"NODE.ROLE==manager":             true,
		"node.ip==10.1.2.3":              true,
		"node.ip==10.1.0.0/16":           true,
		"node.ip!=10.1.0.0/16":           false,
		"node.ip==10.2.0.0/16":           false,
		"node.ip!=::1":                   true,
		"node.platform.os==Linux":        true,
		"node.platform.arch==amd64":      true,
		"node.platform.arch==x86_64":     true,
		"node.platform.arch!=aarch64":    true,
		"node.labels.zone==A":            true,
		"node.labels.Zone==b":            true,
		"node.labels.ZONE==a":            false,
		"node.labels.none==x":            false,
		"node.labels.none!=x":            true,
		"engine.labels.disk==ssd":        true,
		"engine.labels.disk!=hdd":        true,
		"node.labels.a.b-c/d!=x y.*(z)?": true,
	} {
		cs, err := ParseConstraints([]string{expr})
		if err != nil {
			t.Errorf("%s: %v", expr, err)
		} else if MatchAll(cs, n) != want {
			t.Errorf("%s is %v", expr, !want)
		}
	}
	n.Status.Addr = ""
	for expr, want := range map[string]bool{"node.ip!=10.0.0.1": true, "node.ip!=10.0.0.0/8": true, "node.ip==10.0.0.1": false, "node.ip==0.0.0.0/0": false} {
		if cs, _ := ParseConstraints([]string{expr}); MatchAll(cs, n) != want {
			t.Errorf("%s is %v of a node whose address is not known", expr, !want)
		}
	}
}

func TestConstraintErrors(t *testing.T) {
	for expr, want := range map[string]string{
		"node.role~manager":   "want KEY==VALUE or KEY!=VALUE",
		"node.role=manager":   "want KEY==VALUE or KEY!=VALUE",
		"node.role==":         "missing",
		"==x":                 "missing",
		"node.name==x":        `unknown key "node.name"`,
		"node.labels.==x":     "unknown key",
		"node.labels.a b==x":  "characters",
		"node.labels.a==x;y":  "characters",
		"node.ip==10.0.0.0.1": "neither an IP address nor a network",
		"node.id!=a==b":       "unknown key",
		"node.labels.é==x":    "characters",
	} {
		_, err := ParseConstraints([]string{"node.id==a", expr})
		if !Is(err, Invalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), expr) {
			t.Errorf("%s: got %v, want %q", expr, err, want)
		}
	}
}

func FuzzParseConstraints(f *testing.F) {
	f.Add("node.labels.zone==a")
	f.Add("node.ip!=10.0.0.0/8")
	n := exampleNode()
	f.Fuzz(func(t *testing.T, expr string) {
		cs, err := ParseConstraints([]string{expr})
		if (err == nil) != (len(cs) == 1) {
			t.Fatal(cs, err)
		}
		MatchAll(cs, n)
	})
}

func TestMatchPlatform(t *testing.T) {
	n := exampleNode()
	for want, platforms := range map[bool][][]swarm.Platform{
		true:  {nil, {{OS: "linux"}}, {{Architecture: "amd64"}}, {{OS: "windows"}, {OS: "Linux", Architecture: "x86_64"}}, {{}}},
		false: {{{OS: "windows"}}, {{OS: "linux", Architecture: "arm64"}}},
	} {
		for _, p := range platforms {
			if MatchPlatform(p, n) != want {
				t.Errorf("%v: %v", p, !want)
			}
		}
	}
}

func TestSameRun(t *testing.T) {
	base := func() *TaskSpec {
		return &TaskSpec{ServiceName: "web", Endpoint: &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 1}}}, TaskSpec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "a", Env: []string{"A=1"}}}}
	}
	for name, c := range map[string]struct {
		change func(*TaskSpec)
		same   bool
	}{
		"nothing":        {func(*TaskSpec) {}, true},
		"empty, not nil": {func(s *TaskSpec) { s.ContainerSpec.Args = []string{} }, true},
		"restart policy": {func(s *TaskSpec) { s.RestartPolicy = &swarm.RestartPolicy{} }, true},
		"placement":      {func(s *TaskSpec) { s.Placement = &swarm.Placement{MaxReplicas: 1} }, true},
		"service labels": {func(s *TaskSpec) { s.ServiceLabels = map[string]string{"a": "b"} }, true},
		"a port of all":  {func(s *TaskSpec) { s.Endpoint.Ports[0].PublishedPort = 2 }, true},
		"the last port":  {func(s *TaskSpec) { s.Endpoint.Ports = nil }, false},
		"image":          {func(s *TaskSpec) { s.ContainerSpec.Image = "b" }, false},
		"force":          {func(s *TaskSpec) { s.ForceUpdate++ }, false},
		"resources":      {func(s *TaskSpec) { s.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{Pids: 1}} }, false},
		"login":          {func(s *TaskSpec) { s.RegistryAuth = "x" }, false},
		"a port of nodes": {func(s *TaskSpec) {
			s.Endpoint = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{PublishedPort: 1}, {PublishedPort: 3, PublishMode: "host"}}}
		}, false},
	} {
		s := base()
		c.change(s)
		if base().SameRun(s) != c.same {
			t.Errorf("%s: same is %v", name, !c.same)
		}
	}
}
