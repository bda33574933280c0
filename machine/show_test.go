package machine

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// daemon answers on a socket as the API does.
func daemon(t *testing.T, answers map[string]string) Endpoint {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
			a = `{"message":"not here"}`
		}
		_, _ = w.Write([]byte(a))
	}))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return Endpoint{URL: "unix://" + path}
}

func TestList(t *testing.T) {
	f, d, _ := newFleet(t)
	mustCreate(t, f, "lead", "man", "work", "lock", "free", "off", "sick")
	info := func(swarm string) map[string]string {
		return map[string]string{"/info": `{"ServerVersion":"1.2","Swarm":{` + swarm + `}}`}
	}
	leader := info(`"NodeID":"n1","LocalNodeState":"active","ControlAvailable":true`)
	leader["/nodes/n1"] = `{"ManagerStatus":{"Leader":true}}`
	for name, answers := range map[string]map[string]string{
		"lead": leader, "man": info(`"NodeID":"n2","LocalNodeState":"active","ControlAvailable":true`),
		"work": info(`"LocalNodeState":"active"`), "lock": info(`"LocalNodeState":"locked","Error":"needs\nits key"`),
		"free": info(`"LocalNodeState":"inactive"`), "sick": {},
	} {
		d.urls[name] = daemon(t, answers).URL
	}
	d.cuts = map[string][]string{"lock": {"*"}, "off": {"man", "work"}}
	if err := f.Do(t.Context(), VerbKill, []string{"off"}); err != nil {
		t.Fatal(err)
	}
	rows, err := f.List(t.Context(), d.urls["man"], time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rows {
		if r.URL != d.urls[r.Name] {
			t.Errorf("%s: URL %s", r.Name, r.URL)
		}
		rows[i].ResponseTime = 0
		if r.URL != "" {
			rows[i].URL = "unix:///" + r.Name
		}
	}
	var b strings.Builder
	if err := WriteTable(&b, rows, ""); err != nil {
		t.Fatal(err)
	}
	want := `
NAME   ACTIVE   DRIVER   STATE     URL            SWARM     DOCKER   ERRORS
free   -        fake     Running   unix:///free             v1.2     
lead   -        fake     Running   unix:///lead   leader    v1.2     
lock   -        fake     Running   unix:///lock   locked    v1.2     disconnected from everything; needs its key
man    *        fake     Running   unix:///man    manager   v1.2     
off    -        fake     Stopped                                     disconnected from man, work
sick   -        fake     Running   unix:///sick                      GET /info: 503 Service Unavailable: not here
work   -        fake     Running   unix:///work   worker    v1.2     
`
	if diff := cmp.Diff(want[1:], b.String()); diff != "" {
		t.Error(diff)
	}
	kept, err := Filter(rows, []string{"state=running", "name=man", "name=off", "driver=FAKE"})
	if err != nil || len(kept) != 1 || kept[0].Name != "man" {
		t.Errorf("%v, %v", kept, err)
	}
	b.Reset()
	if err := WriteTable(&b, kept, `{{.Name}}\t{{.Driver}} {{.Active}}`); err != nil || b.String() != "man\tfake *\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	wantError(t, WriteTable(&b, kept, "{{.Name"), "--format")
	for _, format := range []string{"json", "{{json .}}"} {
		b.Reset()
		var row Row
		if err := WriteTable(&b, kept, format); err != nil || json.Unmarshal([]byte(b.String()), &row) != nil || row.Name != "man" {
			t.Errorf("%s: %q, %v", format, b.String(), err)
		}
	}
}

// The filters are docker-machine's.
func TestFilter(t *testing.T) {
	rows := []Row{
		{Name: "m1", Swarm: "leader", labels: []string{"rack=1", "ssd"}},
		{Name: "m2", Swarm: "manager", labels: []string{"rack=2"}},
		{Name: "w1", Swarm: "worker"},
	}
	for filters, want := range map[string]string{
		"name=m": "m1 m2", "name=^m2$": "m2", "name=1": "m1 w1", "name=^w name=2": "m2 w1", "name=M": "",
		"label=rack": "m1 m2", "label=rack=2": "m2", "label=ssd": "m1", "label=ssd label=rack=2": "m1 m2", "label=no": "",
		"swarm=Leader": "m1", "swarm=worker name=m": "",
	} {
		kept, err := Filter(rows, strings.Fields(filters))
		var names []string
		for _, r := range kept {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", filters, got, err, want)
		}
	}
	_, err := Filter(rows, []string{"size=x"})
	wantError(t, err, "size=x", "name=")
	_, err = Filter(rows, []string{"name=("})
	wantError(t, err, "name=(", "missing closing )")
}

func TestAwait(t *testing.T) {
	e := daemon(t, map[string]string{"/_ping": "OK"})
	if err := Await(t.Context(), e, func() error { return nil }); err != nil {
		t.Error(err)
	}
	calls := 0
	err := Await(t.Context(), Endpoint{URL: "unix:///nowhere"}, func() error {
		if calls++; calls > 2 {
			return net.ErrClosed
		}
		return nil
	})
	if !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	wantError(t, Await(t.Context(), Endpoint{URL: "ftp://x"}, nil), "ftp://x")
	wantError(t, Await(t.Context(), Endpoint{URL: "tcp://x", CertDir: t.TempDir()}, nil), "cert.pem")
}

func TestScript(t *testing.T) {
	vars := []Variable{{"DOCKER_HOST", `unix:///a b/$x"`}, {"DOCKER_TLS_VERIFY", ""}}
	for shell, want := range map[string]string{
		"bash":     "export DOCKER_HOST=\"unix:///a b/\\$x\\\"\"\nunset DOCKER_TLS_VERIFY\n# Run this command to configure your shell:\n# eval $(CMD)\n",
		"/bin/zsh": "export DOCKER_HOST=\"unix:///a b/\\$x\\\"\"\nunset DOCKER_TLS_VERIFY\n# Run this command to configure your shell:\n# eval $(CMD)\n",
		"fish":     "set -gx DOCKER_HOST \"unix:///a b/\\$x\\\"\";\nset -e DOCKER_TLS_VERIFY;\n# Run this command to configure your shell:\n# eval (CMD)\n",
		"cmd":      "SET DOCKER_HOST=unix:///a b/$x\"\nSET DOCKER_TLS_VERIFY=\nREM Run this command to configure your shell:\nREM @FOR /f \"tokens=*\" %i IN ('CMD') DO @%i\n",
		"none":     "DOCKER_HOST=unix:///a b/$x\"\nDOCKER_TLS_VERIFY=\n",
	} {
		got, err := Script(shell, vars, "CMD")
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", shell, diff)
		}
	}
	for shell := range syntaxes() {
		got, err := Script(shell, vars, "CMD")
		if err != nil || strings.Contains(got, "%!") {
			t.Errorf("%s: %s %v", shell, got, err)
		}
	}
	for path, want := range map[string]string{"": "bash", "/usr/bin/fish": "fish", "/bin/rbash": "bash", "/bin/csh": "csh"} {
		if got := ShellOf(path); got != want {
			t.Errorf("%q: %s", path, got)
		}
	}
	_, err := Script("rc", vars, "")
	wantError(t, err, `unknown shell "rc"`)
}

// What the script says is what a shell hears, whatever is in a path.
func TestScriptIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringMatching(`[ -~]{1,30}`).Draw(t, "value")
		script, err := Script("sh", []Variable{{"X", value}}, "true")
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("/bin/sh", "-c", script+`printf %s "$X"`).Output()
		if err != nil || string(out) != value {
			t.Fatalf("%q became %q (%v)", value, out, err)
		}
	})
}

func TestVariables(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	local := Endpoint{URL: "unix:///s"}
	if diff := cmp.Diff([]Variable{{"DOCKER_HOST", "unix:///s"}, {"DOCKER_MACHINE_NAME", "a"}}, Variables("a", local, env(nil))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Variable{{"DOCKER_HOST", "unix:///s"}, {"DOCKER_MACHINE_NAME", "a"}, {"DOCKER_TLS_VERIFY", ""}},
		Variables("a", local, env(map[string]string{"DOCKER_TLS_VERIFY": "1"}))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Variable{{"DOCKER_TLS_VERIFY", "1"}, {"DOCKER_HOST", "tcp://h"}, {"DOCKER_CERT_PATH", "/c"}, {"DOCKER_MACHINE_NAME", "a"}},
		Variables("a", Endpoint{URL: "tcp://h", CertDir: "/c"}, env(nil))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Variable{{"no_proxy", "x,192.0.2.1"}}, WithoutProxy(nil, "192.0.2.1", env(map[string]string{"no_proxy": "x"}))); diff != "" {
		t.Error(diff)
	}
}
