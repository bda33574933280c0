package dockerapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"github.com/legion-swarm/legion/api"
)

func minor(n int) Version { return Version{1, n} }

// text is v as JSON.
func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What a client of each version asks for, and what it then gets.
func TestWantedContainers(t *testing.T) {
	const whole = `{"Image":"app","Healthcheck":{"StartInterval":1},"HostConfig":{"ConsoleSize":[1,2],"Annotations":{"a":"b"},"IpcMode":"","Mounts":[
		{"Type":"bind","Source":"/a","Target":"/a","ReadOnly":true,"BindOptions":{"NonRecursive":true,"CreateMountpoint":true}},
		{"Type":"volume","Source":"v","Target":"/v","BindOptions":{"Propagation":"rslave"}}]}}`
	for _, c := range []struct {
		minor    int
		console  uint
		notes    int
		ipc      container.IpcMode
		interval time.Duration
		bind     mount.BindOptions
		stray    bool
	}{
		{39, 0, 0, "shareable", 0, mount.BindOptions{ReadOnlyNonRecursive: true}, false},
		{41, 0, 0, "", 0, mount.BindOptions{NonRecursive: true, ReadOnlyNonRecursive: true}, false},
		{42, 1, 0, "", 0, mount.BindOptions{NonRecursive: true, CreateMountpoint: true, ReadOnlyNonRecursive: true}, true},
		{43, 1, 1, "", 0, mount.BindOptions{NonRecursive: true, CreateMountpoint: true, ReadOnlyNonRecursive: true}, true},
		{44, 1, 1, "", 1, mount.BindOptions{NonRecursive: true, CreateMountpoint: true}, true},
	} {
		var r createRequest
		if err := json.Unmarshal([]byte(whole), &r); err != nil {
			t.Fatal(err)
		}
		if err := wantedFor(minor(c.minor), &r); err != nil {
			t.Fatal(err)
		}
		h := r.HostConfig
		if h.ConsoleSize[0] != c.console || len(h.Annotations) != c.notes || h.IpcMode != c.ipc || r.Healthcheck.StartInterval != c.interval ||
			*h.Mounts[0].BindOptions != c.bind || (h.Mounts[1].BindOptions != nil) != c.stray {
			t.Errorf("1.%d: %s", c.minor, text(t, &r))
		}
	}
	for _, c := range []struct {
		minor int
		mount mount.Mount
		want  string
	}{
		{44, mount.Mount{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{Subpath: "x"}}, "needs API v1.45"},
		{45, mount.Mount{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{Subpath: "x"}}, ""},
		{43, mount.Mount{Type: mount.TypeBind, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, "needs API v1.44"},
		{44, mount.Mount{Type: mount.TypeBind, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, ""},
	} {
		err := mountFor(minor(c.minor), &c.mount)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("1.%d: %v, want %q", c.minor, err, c.want)
		}
	}
}

func TestWantedServices(t *testing.T) {
	const whole = `{"Mode":{"ReplicatedJob":{}},"TaskTemplate":{"Placement":{"MaxReplicas":3},"Resources":{"Limits":{"Pids":7}},
		"ContainerSpec":{"Image":"app","Sysctls":{"a":"b"},"CapabilityAdd":["X"],"Ulimits":[{"Name":"nofile"}],"Healthcheck":{"StartInterval":1},
		"Privileges":{"Seccomp":{"Mode":"default"},"CredentialSpec":{"Config":"c"}}}}}`
	for _, c := range []struct {
		minor int
		has   []string
	}{
		{39, nil},
		{40, []string{"MaxReplicas", "Sysctls", `"Config":"c"`}},
		{41, []string{"MaxReplicas", "Sysctls", `"Config":"c"`, "ReplicatedJob", "Pids", "CapabilityAdd", "Ulimits"}},
		{44, []string{"MaxReplicas", "Sysctls", `"Config":"c"`, "ReplicatedJob", "Pids", "CapabilityAdd", "Ulimits", "StartInterval", "Seccomp"}},
	} {
		var s swarm.ServiceSpec
		if err := json.Unmarshal([]byte(whole), &s); err != nil {
			t.Fatal(err)
		}
		wishedFor(minor(c.minor), &s)
		got := text(t, &s)
		for _, part := range []string{"MaxReplicas", "Sysctls", `"Config":"c"`, "ReplicatedJob", "Pids", "CapabilityAdd", "Ulimits", "StartInterval", "Seccomp"} {
			want := false
			for _, h := range c.has {
				want = want || h == part
			}
			if strings.Contains(got, part) != want {
				t.Errorf("1.%d: %s is there: %t, want %t: %s", c.minor, part, !want, want, got)
			}
		}
	}
}

func TestAnswersBefore144(t *testing.T) {
	info := &system.Info{SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"}, Runtimes: map[string]system.RuntimeWithStatus{"runc": {Status: map[string]string{"x": "y"}}}}
	inspect := &container.InspectResponse{ID: strings.Repeat("a", 64), NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
		"bridge": {}, "mine": {Aliases: []string{"web"}}}}}
	for _, c := range []struct {
		name  string
		minor int
		got   func(v Version) any
		has   string
		not   string
	}{
		{"info", 24, func(v Version) any { return infoFor(v, info) }, `"SecurityOptions":["seccomp","cgroupns"]`, "status"},
		{"info", 24, func(v Version) any { return infoFor(v, info) }, `"ExecutionDriver":"\u003cnot supported\u003e"`, "name="},
		{"info", 25, func(v Version) any { return infoFor(v, info) }, `"name=seccomp,profile=builtin"`, "ExecutionDriver"},
		{"info", 44, func(v Version) any { return infoFor(v, info) }, `"status":{"x":"y"}`, "ExecutionDriver"},
		{"inspect", 44, func(v Version) any { return inspectFor(v, inspect) }, `"Aliases":["web","aaaaaaaaaaaa"]`, `"Aliases":["aaaaaaaaaaaa"]`},
		{"inspect", 45, func(v Version) any { return inspectFor(v, inspect) }, `"Aliases":["web"]`, "\"aaaaaaaaaaaa\""},
	} {
		got := text(t, c.got(minor(c.minor)))
		if !strings.Contains(got, c.has) || strings.Contains(got, c.not) {
			t.Errorf("%s 1.%d: %s, want %q in it and not %q", c.name, c.minor, got, c.has, c.not)
		}
	}
	if info.Runtimes["runc"].Status == nil || info.SecurityOptions[0] != "name=seccomp,profile=builtin" || len(inspect.NetworkSettings.Networks["mine"].Aliases) != 1 {
		t.Error("what is shared was edited")
	}
}

func TestRequestsBefore144(t *testing.T) {
	service := `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"app:1"}}}`
	for _, q := range []request{
		{name: "images 1.43", spec: "GET /v1.43/images/json", status: 200, has: `"VirtualSize":5242880`},
		{name: "images 1.42", spec: "GET /v1.42/images/json", status: 200, has: `"RepoDigests":["<none>@<none>"]`},
		{name: "images 1.40 by name", spec: "GET /v1.40/images/json?filter=app", status: 200, call: "ImageList(false, map[reference:[app]])"},
		{name: "images 1.41 by name", spec: "GET /v1.41/images/json?filter=app", status: 200, call: "ImageList(false, map[])"},
		{name: "image 1.43", spec: "GET /v1.43/images/app/json", status: 200, has: `"Created":"0001-01-01T00:00:00Z","VirtualSize":0`},
		{name: "df 1.43", spec: "GET /v1.43/system/df", status: 200, has: `"VirtualSize":`},
		{name: "all volumes", spec: "POST /v1.41/volumes/prune", status: 200, call: "VolumePrune(map[all:[true]])"},
		{name: "unnamed volumes", spec: "POST /v1.42/volumes/prune", status: 200, call: "VolumePrune(map[])"},
		{name: "networks with containers", spec: "GET /v1.27/networks", status: 200, has: `"Containers":{}`, call: "NetworkInspect(net1, , false)"},
		{name: "networks with a slash", spec: "GET /networks/", status: 200, call: "NetworkList(map[])"},
		{name: "networks without", spec: "GET /v1.28/networks", status: 200, has: `"Containers":{}`, call: "NetworkList(map[])"},
		{name: "no signal", spec: "POST /v1.41/containers/web/stop?signal=INT", status: 204, call: `ContainerStop(web, , nil)`},
		{name: "services without status", spec: "GET /v1.40/services?status=1", status: 200, call: "ServiceList(map[], false)"},
		{name: "subpath", spec: "POST /v1.44/containers/create", body: `{"Image":"app","HostConfig":{"Mounts":[{"Type":"volume","Target":"/a","VolumeOptions":{"Subpath":"b"}}]}}`, status: 400, has: "needs API v1.45", call: "-"},
	} {
		t.Run(q.name, q.run)
	}
	for version, want := range map[string]string{"1.41": "application/vnd.docker.raw-stream", "1.42": "application/vnd.docker.multiplexed-stream"} {
		w := do(newServer(t, newFake()), "GET /v"+version+"/containers/web/logs?stdout=1", "", nil)
		if got := w.Header().Get("Content-Type"); got != want {
			t.Errorf("logs of %s: %s, want %s", version, got, want)
		}
	}
	for _, c := range []struct {
		version, spec string
		calls         int
	}{{"1.29", service, 2}, {"1.30", service, 1}, {"1.29", strings.Replace(service, "app:1", "app@sha256:11", 1), 1}} {
		f := newFake()
		if w := do(newServer(t, f), "POST /v"+c.version+"/services/create", c.spec, nil); w.Code != http.StatusCreated {
			t.Errorf("%s: %d %s", c.version, w.Code, w.Body)
		}
		if calls := f.took(); len(calls) != c.calls {
			t.Errorf("%s: backend saw %s", c.version, calls)
		}
	}
	for query, calls := range map[string]int{"": 2, "&rollback=none": 2, "&rollback=previous": 1} {
		f := newFake()
		if w := do(newServer(t, f), "POST /v1.29/services/web/update?version=7"+query, service, nil); w.Code != http.StatusOK {
			t.Errorf("update%s: %d %s", query, w.Code, w.Body)
		}
		if got := f.took(); len(got) != calls {
			t.Errorf("update%s: backend saw %s", query, got)
		}
	}
	f := newFake()
	f.fail("DistributionInspect", api.Errorf(api.Unavailable, "no way there"))
	if w := do(newServer(t, f), "POST /v1.29/services/create", service, nil); w.Code != http.StatusCreated || !strings.Contains(w.Body.String(), "no way there") {
		t.Errorf("an image that can't be looked up: %d %s", w.Code, w.Body)
	}
}
