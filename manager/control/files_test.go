package control

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func TestDataThatIsRefused(t *testing.T) {
	f := setUp(t)
	golang := &swarm.Driver{Name: "golang"}
	for want, s := range map[string]swarm.SecretSpec{
		"secret data must be larger than 0 and less than 512000 bytes: it has 0":      {},
		"secret data must be larger than 0 and less than 512000 bytes: it has 512000": {Data: make([]byte, 500<<10)},
		"secret drivers are not served":                                               {Driver: &swarm.Driver{Name: "vault"}},
		`template driver "jinja" is not known: want golang`:                           {Data: []byte("x"), Templating: &swarm.Driver{Name: "jinja"}},
		`template driver "" is not known`:                                             {Data: []byte("x"), Templating: &swarm.Driver{}},
		"secret a: bad template: 1: unclosed action":                                  {Data: []byte("{{"), Templating: golang},
		"there is no .Nope": {Data: []byte("{{.Nope}}"), Templating: golang},
		"100000 steps":      {Data: []byte("{{range 10000000000}}{{end}}"), Templating: golang},
		"legion.version-of": {Data: []byte("x"), Annotations: swarm.Annotations{Labels: map[string]string{"legion.version-of": ""}}},
	} {
		s.Name = "a"
		class := api.Invalid
		if s.Driver != nil {
			class = api.Unimplemented
		}
		_, err := f.SecretCreate(t.Context(), &s)
		refused(t, err, class, want)
	}
	for want, name := range map[string]string{"name must be provided": "", "invalid secret name": strings.Repeat("a", 65), "only 64": "a/b"} {
		_, err := f.SecretCreate(t.Context(), &swarm.SecretSpec{Annotations: swarm.Annotations{Name: name}, Data: []byte("x")})
		refused(t, err, api.Invalid, want)
	}
	ok := &swarm.SecretSpec{Annotations: swarm.Annotations{Name: "full"}, Data: make([]byte, 500<<10-1)}
	if _, err := f.SecretCreate(t.Context(), ok); err != nil {
		t.Error(err)
	}
	_, err := f.SecretCreate(t.Context(), &swarm.SecretSpec{Annotations: swarm.Annotations{Name: "FULL"}, Data: []byte("x")})
	refused(t, err, api.Exists, "full")
	s := f.one(t, "full")
	other := s.Spec
	other.Templating = golang
	refused(t, f.SecretUpdate(t.Context(), "full", s.Version.Index, &other), api.Invalid, "only updates to Labels are allowed")
	refused(t, f.SecretUpdate(t.Context(), "full", s.Version.Index-1, &s.Spec), api.OutOfSequence, "update out of sequence")
}

func (f *fixture) one(t *testing.T, name string) *swarm.Secret {
	t.Helper()
	s, err := f.SecretInspect(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func config(name, file string) *swarm.ConfigReference {
	return &swarm.ConfigReference{ConfigID: "id-" + name, ConfigName: name, File: &swarm.ConfigReferenceFileTarget{Name: file}}
}

func TestFilesThatAreRefused(t *testing.T) {
	type refs = []*swarm.SecretReference
	type confs = []*swarm.ConfigReference
	owned := func(uid, gid string, mode uint32) *swarm.SecretReference {
		r := secret("a", "f")
		r.File.UID, r.File.GID, r.File.Mode = uid, gid, 0o400
		if mode != 0 {
			r.File.Mode = 1 << 31
		}
		return r
	}
	for want, c := range map[string]swarm.ContainerSpec{
		"secret references 'a' and 'b' have a conflicting target: '/run/secrets/x'": {Secrets: refs{secret("a", "x"), secret("b", "/run/secrets/x")}},
		"secret references 'a' and 'b' have a conflicting target: 'd/../x'":         {Secrets: refs{secret("a", "x"), secret("b", "d/../x")}},
		"config references 'a' and 'b' have a conflicting target: '/x'":             {Configs: confs{config("a", "x"), config("b", "/x")}},
		"secret 'a' and config 'b' have a conflicting target: '/x'":                 {Secrets: refs{secret("a", "/x")}, Configs: confs{config("b", "x")}},
		"secret 'a': its target '../..' is not a file":                              {Secrets: refs{secret("a", "../..")}},
		`secret 'a': uid "root" is not a number`:                                    {Secrets: refs{owned("root", "", 0)}},
		`secret 'a': gid "-1" is not a number`:                                      {Secrets: refs{owned("", "-1", 0)}},
		"secret 'a': mode 0x80000000":                                               {Secrets: refs{owned("", "", 1)}},
		"malformed config reference a, no target provided":                          {Configs: confs{config("a", "")}},
		"exactly one of": {Privileges: &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{File: "f", Registry: "r"}}},
		"config c is not among the service's configs": {Privileges: &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{Config: "c"}}},
	} {
		s := spec("web")
		c.Image = "app:1"
		s.TaskTemplate.ContainerSpec = &c
		if want == "secret 'a': mode 0x80000000" {
			want = "is not that of a file"
		}
		refused(t, ValidateService(s), api.Invalid, want)
	}
}

func TestTemplatesThatAreRefused(t *testing.T) {
	for want, c := range map[string]swarm.ContainerSpec{
		"TaskTemplate: ContainerSpec.Env[0] (X): bad template": {Env: []string{"X={{.Nope."}},
		"ContainerSpec.Hostname: bad template":                 {Hostname: "{{.Nope}}"},
		"duplicate mount point: /d/1":                          {Mounts: []mount.Mount{{Type: "volume", Target: "/d/{{.Task.Slot}}"}, {Type: "volume", Target: "/d/1"}}},
		"must not be an absolute path":                         {Mounts: []mount.Mount{{Type: "volume", Source: "{{`/x`}}", Target: "/d"}}},
		"legion.templates=docker":                              {Args: []string{"{{json .Service.Name}}"}},
	} {
		s := spec("web")
		c.Image = "app:1"
		s.TaskTemplate.ContainerSpec = &c
		refused(t, ValidateService(s), api.Invalid, want)
	}
	s := spec("web")
	s.Labels = map[string]string{api.TemplatesLabel: api.TemplatesDocker, "tier": "a"}
	s.TaskTemplate.ContainerSpec.Args, s.TaskTemplate.ContainerSpec.Hostname = []string{"{{json .Service.Name}}"}, "{{.Service.Labels.tier}}"
	if err := ValidateService(s); err != nil {
		t.Error(err)
	}
}
