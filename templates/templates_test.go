package templates

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

func task() *api.Task {
	t := &api.Task{ID: "t1", ServiceID: "s1", NodeID: "n1", Slot: 3, Spec: &api.TaskSpec{ServiceName: "web", ServiceLabels: map[string]string{"tier": "front", "a.b": "c"}}}
	return t
}

func of(t *api.Task) *Values {
	return Of(t, "host", swarm.Platform{Architecture: "x86_64", OS: "linux"})
}

func TestText(t *testing.T) {
	e := &expansion{ctx: t.Context(), values: of(task())}
	for text, want := range map[string]string{
		"":                  "",
		"plain } {":         "plain } {",
		"{{.Service.Name}}": "web",
		"{{.Service.ID}}":   "s1",
		"{{.Node.ID}} {{.Node.Hostname}} {{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}": "n1 host linux/x86_64",
		"{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}":                                            "t1 web.3.t1 3",
		`{{.Service.Labels.tier}} {{index .Service.Labels "a.b"}}`:                              "front c",
		`{{join "-" .Service.Name .Task.Slot}}`:                                                 "web-3",
		`{{if eq .Task.Slot "3"}}third{{else}}other{{end}}`:                                     "third",
		`{{with .Service}}{{.Name}}{{end}}{{range $k, $v := .Service.Labels}}{{$k}}{{end}}`:     "weba.btier",
		`{{printf "%05s|%-3s" .Task.Slot "a"}}`:                                                 "00003|a  ",
		`{{define "x"}}<{{.}}>{{end}}{{template "x" .Task.Slot}}`:                               "<3>",
		`{{range 3}}{{.}}{{end}}`:                                                               "012",
		`{{"{{"}}`:                                                                              "{{",
		`{{define "only"}}{{end}}`:                                                              "",
	} {
		if got, err := e.text("F", text); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
}

func TestBadTemplates(t *testing.T) {
	e := &expansion{ctx: t.Context(), values: of(task())}
	for text, want := range map[string]string{
		"{{.Nope.":                              "unexpected",
		"{{":                                    "unclosed action",
		"{{.Nope}}":                             "there is no .Nope: a template has .Service, .Node, .Task",
		"{{.Service.Nope}}":                     "there is no .Service.Nope: .Service has .ID, .Name, .Labels",
		"{{.Service.Name.More}}":                ".Service.Name is text",
		"{{$.Task.Nope}}":                       "there is no .Task.Nope",
		`{{if eq .Task.Slot "9"}}{{.X}}{{end}}`: "there is no .X",
		"{{.Service.Labels.nope}}":              `map has no entry for key "nope"`,
		"{{secret \"x\"}}":                      `function "secret" not defined`,
		"{{range 1000000000000}}{{end}}":        "100000 steps",
		"{{range 1000000000000}}x{{end}}":       "100000 steps",
		`{{define "a"}}{{template "a" .}}{{end}}{{template "a" .}}`:                       "uses itself",
		`{{define "a"}}{{template "b" .}}{{end}}{{define "b"}}{{template "a" .}}{{end}}x`: "uses itself",
		`{{printf "%1000000000d" 1}}`:                                                     "width above 999",
		`{{printf "%.1000000f" 1.0}}`:                                                     "width above 999",
		`{{printf "%*d" 1000000 1}}`:                                                      "can't be an argument",
		`{{printf "%999d" 1 | printf "%999s%[1]s" | len | println}}` + strings.Repeat(`{{.Task.ID}}`, 9000) + "{{.Nope}}": "there is no .Nope",
		`{{$x := "0123456789"}}` + strings.Repeat(`{{$x = print $x $x}}`, 40):                                             "too much text",
		`{{$x := "0123456789"}}` + strings.Repeat(`{{$x = printf "%s%s" $x $x}}`, 40):                                     "too much text",
		`{{$x := "0123456789"}}` + strings.Repeat(`{{$x = join $x $x $x}}`, 40):                                           "too much text",
		`{{range 20000}}0123456789{{end}}`:                                                                                "too much text: more than 131072 bytes",
		"{{1" + strings.Repeat(" | print", 100) + "}}":                                                                    "more than 64 commands",
		strings.Repeat("x", maxText) + "{{1}}":                                                                            "too much text",
		laughs():                                                                                                          "100000 steps",
	} {
		began := time.Now()
		_, err := e.text("Field", text)
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "Field: bad template: ") {
			t.Errorf("%.60s: %v; want %q", text, err, want)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("%.60s took %v", text, d)
		}
	}
}

// laughs uses templates that use templates, and writes nothing.
func laughs() string {
	s := `{{define "a"}}{{end}}`
	for c := 'a'; c < 'z'; c++ {
		use := `{{template "` + string(c) + `"}}`
		s += `{{define "` + string(c+1) + `"}}` + use + use + `{{end}}`
	}
	return s + `{{template "z"}}`
}

func TestOursLeavesOtherLanguages(t *testing.T) {
	e := &expansion{ctx: t.Context(), values: of(task())}
	for text, want := range map[string]string{
		"{{.Names}}":                          "{{.Names}}",
		"{{ normalize .Name }}":               "{{ normalize .Name }}",
		"{{range .items}}{{.Node.x}}{{end}}":  "{{range .items}}{{.Node.x}}{{end}}",
		"{{ broken":                           "{{ broken",
		"{{json .}}":                          "{{json .}}",
		`{{"{{"}}`:                            `{{"{{"}}`,
		"{% raw %} .Service.Name":             "{% raw %} .Service.Name",
		"--id={{.Task.Slot}}":                 "--id=3",
		`{{"{{.Names}}"}} {{.Task.Slot}}`:     "{{.Names}} 3",
		"{{with $.Service.Name}}{{.}}{{end}}": "web",
	} {
		if got, err := e.ours("F", text); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"{{.Service.Name", "{{json .Service.Name}}", "{{.Node.Nope}}"} {
		if _, err := e.ours("F", text); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "legion.templates=docker") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func spec(text string) *swarm.TaskSpec {
	return &swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{
			Image: text, Hostname: text, Env: []string{"A=" + text, text, text + "=b"}, Command: []string{"c", text}, Args: []string{text},
			Labels: map[string]string{text: text},
			Mounts: []mount.Mount{{Source: text, Target: text, VolumeOptions: &mount.VolumeOptions{
				Labels: map[string]string{text: text}, DriverConfig: &mount.Driver{Name: text, Options: map[string]string{text: text}},
			}}, {Target: "/x"}},
		},
		LogDriver: &swarm.Driver{Name: text, Options: map[string]string{text: text}},
	}
}

func TestExpand(t *testing.T) {
	const x = "{{.Task.Slot}}"
	in := spec(x)
	got, err := of(task()).Expand(t.Context(), in, []string{"R={{.Task.ID}}"})
	if err != nil {
		t.Fatal(err)
	}
	want := spec("3")
	want.ContainerSpec.Image, want.ContainerSpec.Env = x, []string{"A=3", x, x + "=b", "R=t1"}
	want.ContainerSpec.Labels, want.LogDriver.Name, want.LogDriver.Options = map[string]string{x: "3"}, x, map[string]string{x: "3"}
	o := want.ContainerSpec.Mounts[0].VolumeOptions
	o.Labels, o.DriverConfig.Name, o.DriverConfig.Options = map[string]string{x: "3"}, x, map[string]string{x: "3"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("have %+v\nwant %+v", got.ContainerSpec, want.ContainerSpec)
	}
	if !reflect.DeepEqual(in, spec(x)) {
		t.Error("the spec was changed, which all tasks share")
	}
}

func TestExpandAsDockerDoes(t *testing.T) {
	k := task()
	k.Spec.ServiceLabels = map[string]string{api.TemplatesLabel: api.TemplatesDocker}
	in := spec("{{.Task.Slot}}")
	got, err := of(k).Expand(t.Context(), in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.ContainerSpec.Hostname != "3" || got.ContainerSpec.Args[0] != "{{.Task.Slot}}" || !reflect.DeepEqual(got.LogDriver, in.LogDriver) {
		t.Errorf("%+v", got.ContainerSpec)
	}
}

func TestSlots(t *testing.T) {
	global, job := task(), task()
	global.Spec.Global, global.Slot = true, 0
	job.JobIteration = &swarm.Version{Index: 2}
	for want, k := range map[string]*api.Task{"n1": global, "3": job} {
		if v := of(k); v.Task.Slot != want {
			t.Errorf("slot %s, want %s", v.Task.Slot, want)
		}
	}
}

func TestNetworks(t *testing.T) {
	in := []api.NetworkAttachment{{Aliases: []string{"a", "{{.Task.Slot}}"}, DriverOpts: map[string]string{"k": "{{.Node.ID}}"}}}
	out, err := of(task()).Networks(t.Context(), in)
	if err != nil || out[0].Aliases[1] != "3" || out[0].DriverOpts["k"] != "n1" || in[0].Aliases[1] == "3" {
		t.Errorf("%+v %v", out, err)
	}
	if _, err := of(task()).Networks(t.Context(), []api.NetworkAttachment{{Aliases: []string{"{{.X}}"}}}); !strings.Contains(err.Error(), "Networks[0].Aliases[0]") {
		t.Error(err)
	}
}

func TestCheckServiceNamesTheField(t *testing.T) {
	for want, set := range map[string]func(c *swarm.TaskSpec){
		"ContainerSpec.Hostname:":         func(c *swarm.TaskSpec) { c.ContainerSpec.Hostname = "{{.X}}" },
		"ContainerSpec.Env[1] (B):":       func(c *swarm.TaskSpec) { c.ContainerSpec.Env = []string{"A=1", "B={{.X}}"} },
		"ContainerSpec.Args[0]:":          func(c *swarm.TaskSpec) { c.ContainerSpec.Args = []string{"{{.Task.X}}"} },
		"ContainerSpec.Command[0]:":       func(c *swarm.TaskSpec) { c.ContainerSpec.Command = []string{"{{.Task.X}}"} },
		"ContainerSpec.Labels[l]:":        func(c *swarm.TaskSpec) { c.ContainerSpec.Labels = map[string]string{"l": "{{.Task.X}}"} },
		"LogDriver.Options[tag]:":         func(c *swarm.TaskSpec) { c.LogDriver = &swarm.Driver{Options: map[string]string{"tag": "{{.Task.X}}"}} },
		"ContainerSpec.Mounts[0].Source:": func(c *swarm.TaskSpec) { c.ContainerSpec.Mounts = []mount.Mount{{Source: "{{.X}}"}} },
		"ContainerSpec.Mounts[0].Target:": func(c *swarm.TaskSpec) { c.ContainerSpec.Mounts = []mount.Mount{{Target: "{{.X}}"}} },
		`no entry for key "nope"`:         func(c *swarm.TaskSpec) { c.ContainerSpec.Hostname = "{{.Service.Labels.nope}}" },
	} {
		s := &swarm.ServiceSpec{Annotations: swarm.Annotations{Name: "web"}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{}}}
		set(&s.TaskTemplate)
		if _, err := CheckService(t.Context(), s); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
}

func lookup(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { s, ok := m[name]; return s, ok }
}

func TestPayload(t *testing.T) {
	f := &Files{Secret: lookup(map[string]string{"pw": "s3cret {{.Task.Slot}}"}), Config: lookup(map[string]string{"c": "conf"}), Env: []string{"A=1", "B=x=y"}}
	for text, want := range map[string]string{
		"hello {{.Service.Name}} {{.Task.Slot}}":                  "hello web 3",
		`{{secret "pw"}}|{{config "c"}}|{{env "B"}}|{{env "No"}}`: "s3cret {{.Task.Slot}}|conf|x=y|",
		`{{define "only"}}{{end}}`:                                "",
	} {
		if got, err := of(task()).Payload(t.Context(), []byte(text), 1000, f); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		`{{secret "other"}}`: "secret target other not found",
		`{{/* hidden */}}{{index .Service.Labels.hidden 1}}`: "no entry for key",
		strings.Repeat("x", 1000) + "{{1}}":                  "more than 1000 bytes",
	} {
		_, err := of(task()).Payload(t.Context(), []byte(text), 1000, f)
		if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "<") {
			t.Errorf("%.40s: %v; want %s, and nothing of the text", text, err, want)
		}
	}
}

func TestCheckPayload(t *testing.T) {
	for text, want := range map[string]string{
		`{{.Service.Labels.x}} {{secret "pw"}} {{env "A"}}`: "",
		`{{index (secret "pw") 4}}`:                         "",
		"{{.Nope}}":                                         "there is no .Nope",
		"{{":                                                "unclosed",
		"{{range 1000000000000}}{{end}}":                    "steps",
		"{{range 1000}}xxxxxxxxxxx{{end}}":                  "too much text",
	} {
		err := CheckPayload(t.Context(), []byte(text), 1000)
		if want == "" && err != nil || want != "" && (!api.Is(err, api.Invalid) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v; want %q", text, err, want)
		}
	}
}

func TestTheContextEndsIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&expansion{ctx: ctx, values: of(task())}).text("F", "{{1}}"); err == nil || api.Is(err, api.Invalid) {
		t.Error(err)
	}
}

// FuzzText: whatever a template says, it ends soon, and what it makes is bounded.
func FuzzText(f *testing.F) {
	for _, s := range []string{
		"{{.Service.Name}}", "{{range 99}}{{print .}}{{end}}", `{{printf "%9d%s" 1 .}}`, `{{define "a"}}{{template "b"}}{{end}}`, laughs(),
		`{{$x := "a"}}{{$x = join $x $x $x}}{{$x}}`, `{{with .Task}}{{.ID | html | js | urlquery}}{{end}}`, "{{break}}", "{{/* */ -}}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		e := &expansion{ctx: ctx, values: of(task())}
		out, err := e.text("F", text)
		if ctx.Err() != nil {
			t.Fatal("it took 10 seconds")
		}
		if len(out) > max(maxText, len(text)) || err != nil && !api.Is(err, api.Invalid) {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		if out, err := e.ours("F", text); err == nil && !strings.Contains(text, "{{") && out != text {
			t.Fatalf("%q became %q", text, out)
		}
	})
}
