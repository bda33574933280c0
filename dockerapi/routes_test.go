package dockerapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

type request struct {
	name, spec string // spec: METHOD path
	body       string
	header     map[string]string
	status     int
	has        string // in the answer's body
	call       string // the last call to the backend; "-" for none
}

func filtersQuery(json string) string { return "filters=" + url.QueryEscape(json) }

func do(s http.Handler, spec, body string, header map[string]string) *httptest.ResponseRecorder {
	method, path, _ := strings.Cut(spec, " ")
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body == "" {
		r = httptest.NewRequest(method, path, http.NoBody)
	} else if header["Content-Type"] == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestMissingBodies sends each POST without a body. Where the reference needs one, it
// is refused before the backend hears of it.
func TestMissingBodies(t *testing.T) {
	needed := []string{
		"/auth", "/configs/create", "/configs/{name}/update", "/containers/create", "/containers/{name}/exec", "/networks/create",
		"/networks/{name}/connect", "/networks/{name}/disconnect", "/nodes/{name}/update", "/secrets/create", "/secrets/{name}/update",
		"/services/create", "/services/{name}/plan", "/services/{name}/update", "/swarm/init", "/swarm/join", "/swarm/unlock", "/swarm/update",
	}
	for _, r := range newServer(t, newFake()).Routes() {
		if r.Method != http.MethodPost || r.Streams { // those hijack the connection, or read a body that is no JSON
			continue
		}
		t.Run(r.Pattern, func(t *testing.T) {
			f := newFake()
			name := map[string]string{"Network": "n"}[r.Tag]
			if name == "" {
				name = "web"
			}
			path := strings.NewReplacer("{name}", name, "{name...}", name).Replace(r.Pattern) + "?version=1"
			w := do(newServer(t, f), "POST "+path, "", map[string]string{"Content-Type": "application/json"})
			refused := w.Code == http.StatusBadRequest && strings.Contains(w.Body.String(), "invalid JSON: got EOF while reading request body")
			if slices.Contains(needed, r.Pattern) != refused {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if calls := f.took(); refused && len(calls) > 0 {
				t.Errorf("backend saw %s", calls)
			}
		})
	}
}

func (q request) run(t *testing.T) {
	t.Helper()
	f := newFake()
	w := do(newServer(t, f), q.spec, q.body, q.header)
	if w.Code != q.status {
		t.Errorf("status %d, want %d; body %s", w.Code, q.status, w.Body)
	}
	if !strings.Contains(w.Body.String(), q.has) {
		t.Errorf("body %s, want %q in it", w.Body, q.has)
	}
	if w.Code >= 400 {
		var e struct{ Message string }
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Message == "" {
			t.Errorf("an error without a message: %s", w.Body)
		}
	}
	calls := f.took()
	last := "-"
	if len(calls) > 0 {
		last = calls[len(calls)-1]
	}
	if q.call != "" && last != q.call {
		t.Errorf("backend saw %s, want %s", calls, q.call)
	}
}

func login(user string) map[string]string {
	return map[string]string{"X-Registry-Auth": base64.URLEncoding.EncodeToString([]byte(`{"username":"` + user + `"}`))}
}

func TestRequests(t *testing.T) {
	service := `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"app:1"}}}`
	for _, q := range []request{
		// What every route shares: paths, versions, bodies, queries.
		{name: "unknown path", spec: "GET /nope", status: 404, has: "page not found"},
		{name: "unknown method", spec: "PATCH /services", status: 404, has: "page not found"},
		{name: "version", spec: "GET /v1.44/_ping", status: 200, has: "OK"},
		{name: "too old", spec: "GET /v1.23/info", status: 400, has: "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{name: "too new", spec: "GET /v1.99/info", status: 400, has: "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{name: "no version", spec: "GET /v1.4.4/info", status: 400, has: "invalid API version"},
		{name: "malformed", spec: "POST /services/create", body: `{"Name":`, status: 400, has: "ends too early", call: "-"},
		{name: "empty object member", spec: "POST /services/create", body: `{]`, status: 400, has: "invalid JSON", call: "-"},
		{name: "trailing", spec: "POST /services/create", body: service + `{}`, status: 400, has: "unexpected content after JSON", call: "-"},
		{name: "trailing rubbish", spec: "POST /services/create", body: service + `x`, status: 400, has: "unexpected content after JSON", call: "-"},
		{name: "wrong type", spec: "POST /services/create", body: `{"Mode":{"Replicated":{"Replicas":"three"}}}`, status: 400, has: "Mode.Replicated.Replicas is a string, but must be of type uint64", call: "-"},
		{name: "negative replicas", spec: "POST /services/create", body: `{"Mode":{"Replicated":{"Replicas":-1}}}`, status: 400, has: "number -1", call: "-"},
		{name: "not JSON", spec: "POST /services/create", body: service, header: map[string]string{"Content-Type": "text/plain"}, status: 400, has: "unsupported Content-Type header (text/plain)", call: "-"},
		{name: "JSON with charset", spec: "POST /services/create", body: service, header: map[string]string{"Content-Type": "application/json; charset=utf-8"}, status: 201},
		{name: "too large", spec: "POST /secrets/create", body: `{"Name":"` + strings.Repeat("x", 5<<20) + `"}`, status: 413, has: "larger than 4194304 bytes", call: "-"},
		{name: "bad query", spec: "GET /services?a=%zz", status: 400, has: "query", call: "-"},
		{name: "bad filters", spec: "GET /services?filters=x", status: 400, has: "invalid filters", call: "-"},
		{name: "unknown filter", spec: "GET /services?" + filtersQuery(`{"nope":["x"]}`), status: 400, has: "invalid filter 'nope'", call: "-"},
		{name: "both forms of filters", spec: "GET /services?" + filtersQuery(`{"name":["b","a"],"label":{"y":true,"x":true}}`), status: 200, call: "ServiceList(map[label:[x y] name:[b a]], false)"},
		{name: "bad login", spec: "POST /services/create", body: service, header: map[string]string{"X-Registry-Auth": "%"}, status: 400, has: "X-Registry-Auth", call: "-"},

		// Legion's own.
		{name: "history", spec: "GET /services/web/history", status: 200, has: `[{"Version":2,`, call: "ServiceHistory(web)"},
		{name: "rollback to", spec: "POST /services/web/rollback?to=3", status: 200, call: "ServiceRollback(web, 3)"},
		{name: "rollback to nothing", spec: "POST /services/web/rollback", status: 400, has: "invalid value for to", call: "-"},
		{name: "rollback to rubbish", spec: "POST /services/web/rollback?to=-1", status: 400, has: "invalid value for to", call: "-"},
		{name: "promote", spec: "POST /services/web/promote", status: 200, call: "ServicePromote(web)"},
		{name: "plan", spec: "POST /services/web/plan", body: service, status: 200, has: `"Name":"web"`, call: "ServicePlan(web, web)"},

		// System.
		{name: "info", spec: "GET /info", status: 200, has: `"Name":"host1"`},
		{name: "info 1.44", spec: "GET /v1.44/info", status: 200, has: `"BridgeNfIptables":false`},
		{name: "version answer", spec: "GET /version", status: 200, has: `"ApiVersion":"1.56","MinAPIVersion":"1.24"`},
		{name: "auth", spec: "POST /auth", body: `{"username":"ann"}`, status: 200, has: "Login Succeeded", call: "Auth(ann)"},
		{name: "df 1.44", spec: "GET /v1.44/system/df", status: 200, has: `"LayersSize":7,"Images":[{`, call: "DiskUsage([], true)"},
		{name: "df 1.52", spec: "GET /v1.52/system/df", status: 200, has: `"ImageUsage":{"TotalCount":1`},
		{name: "df", spec: "GET /system/df?type=image&type=volume", status: 200, call: "DiskUsage([image volume], false)"},
		{name: "df 1.52 verbose", spec: "GET /v1.52/system/df?verbose=1", status: 200, has: `{"ImageUsage":{"Items":[{`},
		{name: "df 1.53", spec: "GET /v1.53/system/df", status: 200, has: `{"ImageUsage":{`}, // the first key: none of the old fields
		{name: "df of nothing known", spec: "GET /system/df?type=x", status: 400, has: "unknown object type: x", call: "-"},
		{name: "events", spec: "GET /v1.51/events?since=1.5&until=200", status: 200, has: `{"status":"start","id":"` + webID + `","from":"app:1","Type":"container"`},
		{name: "events since ever", spec: "GET /events?since=0&until=200", status: 200, call: "Events(0, 200, map[])"},
		{name: "events until then", spec: "GET /events?until=200", status: 200, call: "Events(-62135596800, 200, map[])"},
		{name: "events the wrong way round", spec: "GET /events?since=9&until=3", status: 400, has: "cannot be after", call: "-"},
		{name: "events with a bad time", spec: "GET /events?since=yesterday", status: 400, has: "since", call: "-"},

		// Containers.
		{name: "ps", spec: "GET /v1.47/containers/json?all=1&limit=3&" + filtersQuery(`{"label":["a=b"]}`), status: 200, has: `"Mounts":[]`, call: "ContainerList({All:true Size:false Limit:3 Filters:map[label:[a=b]]})"},
		{name: "ps limit", spec: "GET /containers/json?limit=x", status: 400, has: "limit"},
		{name: "ps state", spec: "GET /containers/json?" + filtersQuery(`{"status":["nope"]}`), status: 400, has: "invalid value for state"},
		{name: "ps annotation too early", spec: "GET /v1.55/containers/json?" + filtersQuery(`{"annotation":["a"]}`), status: 400, has: "invalid filter 'annotation'"},
		{name: "ps annotation", spec: "GET /v1.56/containers/json?" + filtersQuery(`{"annotation":["a"]}`), status: 200},
		{name: "create", spec: "POST /containers/create?name=/web&platform=linux/arm64/v8", body: `{"Image":"app:1","Cmd":["sleep"],"HostConfig":{}}`, status: 201, has: `{"Id":"` + webID + `","Warnings":[]}`},
		{name: "create nothing", spec: "POST /containers/create", body: `{}`, status: 400, has: "config cannot be empty", call: "-"},
		{name: "create for no platform", spec: "POST /containers/create?platform=linux", body: `{"Image":"a"}`, status: 400, has: "platform"},
		{name: "inspect", spec: "GET /containers/web/json?size=1", status: 200, has: `"Name":"/web"`, call: "ContainerInspect(web, true)"},
		{name: "inspect 1.51", spec: "GET /v1.51/containers/web/json", status: 200, has: `"IPAddress":"172.17.0.2","IPPrefixLen":16`},
		{name: "no container", spec: "GET /containers/nope/json", status: 404, has: "No such container: nope"},
		{name: "top", spec: "GET /containers/web/top?ps_args=aux", status: 200, has: "Titles", call: "ContainerTop(web, aux)"},
		{name: "changes", spec: "GET /containers/web/changes", status: 200, has: "[]"},
		{name: "export", spec: "GET /containers/web/export", status: 200, has: "tar"},
		{name: "start", spec: "POST /containers/web/start", status: 204, call: "ContainerStart(web)"},
		{name: "start with a body", spec: "POST /containers/web/start", body: `{"Binds":[]}`, status: 400, has: "non-empty request body", call: "-"},
		{name: "stop", spec: "POST /containers/web/stop?t=-1&signal=INT", status: 204, call: "ContainerStop(web, INT, -1)"},
		{name: "stop when", spec: "POST /containers/web/stop?t=soon", status: 400, has: `soon\" is not a number`},
		{name: "restart", spec: "POST /containers/web/restart", status: 204},
		{name: "kill", spec: "POST /containers/web/kill?signal=HUP", status: 204, call: "ContainerKill(web, HUP)"},
		{name: "pause", spec: "POST /containers/web/pause", status: 204},
		{name: "unpause", spec: "POST /containers/web/unpause", status: 204},
		{name: "update", spec: "POST /containers/web/update", body: `{"Memory":5}`, status: 200, has: `{"Warnings":[]}`, call: "ContainerUpdate(web, 5)"},
		{name: "rename", spec: "POST /containers/web/rename?name=w2", status: 204, call: "ContainerRename(web, w2)"},
		{name: "rename to nothing", spec: "POST /containers/web/rename", status: 400, has: "may be empty"},
		{name: "resize", spec: "POST /containers/web/resize?h=4&w=5", status: 200, call: "ContainerResize(web, 5, 4)"},
		{name: "resize to nothing", spec: "POST /containers/web/resize?h=4", status: 400, has: "h and w"},
		{name: "rm", spec: "DELETE /containers/web?force=1&v=true", status: 204, call: "ContainerRemove(web, {Force:true Volumes:true})"},
		{name: "prune", spec: "POST /containers/prune?" + filtersQuery(`{"until":["1h"]}`), status: 200, has: `"ContainersDeleted":[]`},
		{name: "commit", spec: "POST /commit?container=web&repo=x&tag=y&pause=0", body: `{}`, status: 201, has: `{"Id":"sha256:22"}`, call: "ContainerCommit(web, x:y, false, [])"},
		{name: "commit nothing", spec: "POST /commit", status: 400, has: "container"},
		{name: "logs", spec: "GET /containers/web/logs?stdout=1&tail=2&since=7", status: 200, has: "out 1", call: "ContainerLogs(web, false, 2, 7)"},
		{name: "logs of no stream", spec: "GET /containers/web/logs", status: 400, has: "you must choose at least one stream"},
		{name: "stats", spec: "GET /containers/web/stats?stream=0&one-shot=1", status: 200, has: "cpu_stats", call: "ContainerStats(web, false, true)"},
		{name: "stats both", spec: "GET /containers/web/stats?stream=1&one-shot=1", status: 400, has: "one-shot"},
		{name: "wait how", spec: "POST /containers/web/wait?condition=x", status: 400, has: "invalid condition"},
		{name: "archive of what", spec: "GET /containers/web/archive", status: 400, has: "path"},
		{name: "archive", spec: "GET /containers/web/archive?path=/etc", status: 200, has: "world"},
		{name: "extract", spec: "PUT /containers/web/archive?path=/etc&copyUIDGID=1", body: "x", header: map[string]string{"Content-Type": "application/x-tar"}, status: 200, call: "ContainerExtract(web, /etc, , false, true)"},
		{name: "exec", spec: "POST /containers/web/exec", body: `{"Cmd":["ls"]}`, status: 201, has: `{"Id":"exec1"}`},
		{name: "exec nothing", spec: "POST /containers/web/exec", body: `{}`, status: 400, has: "Cmd is empty"},
		{name: "exec detached", spec: "POST /exec/exec1/start", body: `{"Detach":true}`, status: 200, call: "ExecStart(exec1, true, false, false, false)"},
		{name: "exec unknown", spec: "POST /exec/nope/start", body: `{}`, status: 404, has: "No such exec instance"},
		{name: "exec resize", spec: "POST /exec/exec1/resize?h=1&w=2", status: 200, call: "ExecResize(exec1, 2, 1)"},
		{name: "exec inspect", spec: "GET /exec/exec1/json", status: 200, has: `"ID":"exec1"`},

		// Images.
		{name: "images", spec: "GET /v1.44/images/json?all=1", status: 200, has: `"RepoDigests":[]`},
		{name: "images 1.44 have no descriptor", spec: "GET /v1.44/images/json", status: 200, has: `"Containers":-1`},
		{name: "pull", spec: "POST /images/create?fromImage=app&tag=1", header: login("bob"), status: 200, has: `"progressDetail":{"current":1,"total":2}`, call: "ImagePull(app:1, false, bob)"},
		{name: "pull by digest", spec: "POST /images/create?fromImage=x.io/app&tag=sha256:" + strings.Repeat("a", 64), status: 200, call: "ImagePull(x.io/app@sha256:" + strings.Repeat("a", 64) + ", false, )"},
		{name: "pull all", spec: "POST /images/create?fromImage=app", status: 200, call: "ImagePull(app, true, )"},
		{name: "pull nonsense", spec: "POST /images/create?fromImage=APP:::", status: 400, has: "invalid reference format", call: "-"},
		{name: "pull nothing", spec: "POST /images/create", status: 400, has: "fromImage", call: "-"},
		{name: "import", spec: "POST /images/create?fromSrc=-&repo=new&message=m&changes=CMD+x", body: "data", status: 200, has: `"status":"sha256:33"`, call: "ImageImport(data, new:latest, m, [CMD x])"},
		{name: "import from afar", spec: "POST /images/create?fromSrc=http://x", status: 501, has: "URL"},
		{name: "load", spec: "POST /images/load?quiet=1", body: "tar", header: map[string]string{"Content-Type": "application/x-tar"}, status: 200, has: "Loaded image", call: "ImageLoad(3)"},
		{name: "image", spec: "GET /images/x.io/a/b:1/json", status: 200, has: `"RepoDigests":[]`, call: "ImageInspect(x.io/a/b:1, <nil>)"},
		{name: "image 1.51", spec: "GET /v1.51/images/app/json", status: 200, has: `"Parent":"","Comment":""`},
		{name: "history", spec: "GET /images/a/b/history", status: 200, has: "COPY", call: "ImageHistory(a/b, <nil>)"},
		{name: "push", spec: "POST /images/x.io/a/push?tag=1", status: 200, has: "push refers", call: "ImagePush(x.io/a:1, false)"},
		{name: "tag", spec: "POST /images/app/tag?repo=x.io/b&tag=2", status: 201, call: "ImageTag(app, x.io/b:2)"},
		{name: "tag badly", spec: "POST /images/app/tag?repo=x.io/b&tag=!", status: 400, has: "invalid tag"},
		{name: "tag as nothing", spec: "POST /images/app/tag", status: 400, has: "repo"},
		{name: "rmi", spec: "DELETE /images/x.io/b:2?force=1&platforms=" + url.QueryEscape(`{"os":"linux","architecture":"arm64"}`), status: 200, has: `[{"Untagged":"x.io/b:2"}]`, call: "ImageRemove(x.io/b:2, true, true, 1)"},
		{name: "image prune", spec: "POST /images/prune", status: 200, has: `"ImagesDeleted":[]`},
		{name: "save", spec: "GET /images/get?names=a&names=b", status: 200, has: "tar", call: "ImageSave([a b])"},
		{name: "save one", spec: "GET /images/x.io/a/get", status: 200, call: "ImageSave([x.io/a])"},
		{name: "save nothing", spec: "GET /images/get", status: 400, has: "names"},
		{name: "distribution", spec: "GET /distribution/x.io/a:1/json", status: 200, has: `"Platforms":[]`, call: "DistributionInspect(x.io/a:1)"},
		{name: "search", spec: "GET /images/search?term=x", status: 501, has: "not served"},
		{name: "build", spec: "POST /build", status: 501, has: "building images is not served"},
		{name: "plugins", spec: "GET /plugins", status: 200, has: "[]"},
		{name: "no plugin", spec: "GET /plugins/x/y:1/json", status: 404, has: `plugin \"x/y:1\" not found`},
		{name: "plugin rm", spec: "DELETE /plugins/x", status: 404, has: "not found"},
		{name: "build prune", spec: "POST /build/prune?all=1", status: 200, has: `{"CachesDeleted":[],"SpaceReclaimed":0}`},
		{name: "plugin pull", spec: "POST /plugins/pull", status: 501, has: "plugins are not served"},
		{name: "session", spec: "POST /session", status: 501},

		// Volumes and networks.
		{name: "volumes", spec: "GET /volumes", status: 200, has: `{"Volumes":[],"Warnings":[]}`},
		{name: "volume create", spec: "POST /volumes/create", body: `{"Name":"v"}`, status: 201, has: `"Name":"v"`},
		{name: "volume", spec: "GET /volumes/v", status: 200, call: "VolumeInspect(v)"},
		{name: "volume rm", spec: "DELETE /volumes/v?force=1", status: 204, call: "VolumeRemove(v, true)"},
		{name: "volume prune", spec: "POST /volumes/prune?" + filtersQuery(`{"all":["1"]}`), status: 200, has: `"VolumesDeleted":[]`},
		{name: "cluster volume", spec: "PUT /volumes/v", status: 501},
		{name: "networks", spec: "GET /networks", status: 200, has: `"Labels":{}`},
		{name: "network create", spec: "POST /networks/create", body: `{"Name":"n","Driver":"overlay"}`, status: 201, has: `{"Id":"net1","Warning":""}`, call: "NetworkCreate(n, overlay)"},
		{name: "network without a name", spec: "POST /networks/create", body: `{}`, status: 400, has: "Name is empty"},
		{name: "network", spec: "GET /networks/n?scope=swarm&verbose=true", status: 200, has: `"Containers":{}`, call: "NetworkInspect(n, swarm, true)"},
		{name: "network, how", spec: "GET /networks/n?verbose=maybe", status: 400, has: "verbose"},
		{name: "network rm", spec: "DELETE /networks/n", status: 204},
		{name: "connect", spec: "POST /networks/n/connect", body: `{"Container":"web"}`, status: 200, call: "NetworkConnect(n, web)"},
		{name: "connect nothing", spec: "POST /networks/n/connect", body: `{}`, status: 400, has: "Container is empty"},
		{name: "disconnect", spec: "POST /networks/n/disconnect", body: `{"Container":"web","Force":true}`, status: 200, call: "NetworkDisconnect(n, web, true)"},
		{name: "network prune", spec: "POST /networks/prune", status: 200, has: `"NetworksDeleted":[]`},

		// The swarm.
		{name: "init", spec: "POST /swarm/init", body: `{"AdvertiseAddr":"127.0.0.1"}`, status: 200, has: `"` + nodeID + `"`, call: "SwarmInit(127.0.0.1)"},
		{name: "join", spec: "POST /swarm/join", body: `{"RemoteAddrs":["a:1"]}`, status: 200, call: "SwarmJoin([a:1])"},
		{name: "leave", spec: "POST /swarm/leave?force=1", status: 200, call: "SwarmLeave(true)"},
		{name: "swarm without labels", spec: "GET /swarm", status: 200, has: `"Labels":{}`},
		{name: "networks 1.51", spec: "GET /v1.51/networks", status: 200, has: `"Containers":{}`},
		{name: "swarm", spec: "GET /swarm", status: 200, has: "SWMTKN-1-w"},
		{name: "swarm update", spec: "POST /swarm/update?version=4&rotateWorkerToken=true", body: `{}`, status: 200, call: "SwarmUpdate(4, {RotateWorkerToken:true RotateManagerToken:false RotateManagerUnlockKey:false RotateNetworkKeys:false})"},
		{name: "swarm update without version", spec: "POST /swarm/update", body: `{}`, status: 400, has: "invalid swarm version ''"},
		{name: "swarm update how", spec: "POST /swarm/update?version=1&rotateManagerToken=x", body: `{}`, status: 400, has: "rotateManagerToken"},
		{name: "unlock key", spec: "GET /swarm/unlockkey", status: 200, has: `{"UnlockKey":"SWMKEY-1-x"}`},
		{name: "unlock", spec: "POST /swarm/unlock", body: `{"UnlockKey":"k"}`, status: 200, call: "SwarmUnlock(k)"},
		{name: "node without labels", spec: "GET /nodes/self", status: 200, has: `"Labels":{}`},
		{name: "nodes", spec: "GET /nodes?" + filtersQuery(`{"node.label":["a"]}`), status: 200, has: nodeID},
		{name: "node", spec: "GET /nodes/self", status: 200, has: nodeID},
		{name: "no node", spec: "GET /nodes/xyz", status: 404, has: "no such node: xyz"},
		{name: "node update", spec: "POST /nodes/n/update?version=3", body: `{"Availability":"drain"}`, status: 200, call: "NodeUpdate(n, 3, drain)"},
		{name: "node update without version", spec: "POST /nodes/n/update?version=x", body: `{}`, status: 400, has: "invalid node version 'x'"},
		{name: "node rm", spec: "DELETE /nodes/n?force=1", status: 200, call: "NodeRemove(n, true)"},
		{name: "services", spec: "GET /v1.51/services?status=true", status: 200, has: `"Resources":{}`, call: "ServiceList(map[], true)"},
		{name: "services 1.52", spec: "GET /v1.52/services", status: 200, has: `"SwapBytes":5`},
		{name: "service create", spec: "POST /services/create", body: service, status: 201, has: `{"ID":"` + svcID + `","Warnings":[]}`},
		{name: "service whole", spec: "GET /services/web", status: 200, has: `"Runtime":"container"`},
		{name: "service login in the other alphabet", spec: "POST /services/web/update?version=7", body: service, header: map[string]string{"X-Registry-Auth": "eyJ1c2VybmFtZSI6Ij8/PyJ9"}, status: 200, call: "ServiceUpdate(web, 7, web, {RegistryAuth:eyJ1c2VybmFtZSI6Ij8_PyJ9 RegistryAuthFrom:spec Rollback: QueryRegistry:false})"},
		{name: "service", spec: "GET /services/web?insertDefaults=true", status: 200, call: "ServiceInspect(web, true)"},
		{name: "no service", spec: "GET /services/nothere", status: 404, has: "no such service: nothere"},
		{name: "service update", spec: "POST /services/web/update?version=7&registryAuthFrom=previous-spec&rollback=previous", body: service, status: 200, has: `{"Warnings":[]}`, call: "ServiceUpdate(web, 7, web, {RegistryAuth: RegistryAuthFrom:previous-spec Rollback:previous QueryRegistry:false})"},
		{name: "service update without version", spec: "POST /services/web/update", body: service, status: 400, has: "invalid service version ''"},
		{name: "service rollback how", spec: "POST /services/web/update?version=1&rollback=x", body: service, status: 400, has: "unrecognized rollback option x"},
		{name: "service login from where", spec: "POST /services/web/update?version=1&registryAuthFrom=x", body: service, status: 400, has: "unsupported registryAuthFrom"},
		{name: "service rm", spec: "DELETE /services/web", status: 200, call: "ServiceRemove(web)"},
		{name: "service logs, bad tail", spec: "GET /services/web/logs?stderr=1&tail=foo", status: 400, has: "must be a positive integer"},
		{name: "task logs, bad tail", spec: "GET /tasks/" + taskID + "/logs?stderr=1&tail=-1", status: 400, has: "must be a positive integer"},
		{name: "service logs, all", spec: "GET /services/web/logs?stderr=1&tail=all", status: 200, has: "err 1"},
		{name: "service logs", spec: "GET /services/web/logs?stderr=1&details=1", status: 200, has: "com.docker.swarm.node.id=" + nodeID + ",com.docker.swarm.service.id=" + svcID + ",com.docker.swarm.task.id=" + taskID + " err 1"},
		{name: "tasks", spec: "GET /tasks?" + filtersQuery(`{"_up-to-date":["true"],"service":["web"]}`), status: 200, has: taskID},
		{name: "task", spec: "GET /tasks/" + taskID, status: 200, has: `"Slot":1`},
		{name: "no task", spec: "GET /tasks/xyz", status: 404, has: "no such task"},
		{name: "task logs", spec: "GET /tasks/" + taskID + "/logs?stdout=1&timestamps=1", status: 200, has: "1970-01-01T00:01:40.000000005Z out 1"},
		{name: "secrets", spec: "GET /secrets", status: 200, has: "sec1"},
		{name: "secret create", spec: "POST /secrets/create", body: `{"Name":"s","Data":"YWI="}`, status: 201, has: `{"ID":"sec1"}`, call: "SecretCreate(s, 2)"},
		{name: "secret with bad data", spec: "POST /secrets/create", body: `{"Name":"s","Data":"!"}`, status: 400, has: "base64"},
		{name: "secret without labels", spec: "GET /secrets/s", status: 200, has: `"Labels":{}`},
		{name: "secret", spec: "GET /secrets/s", status: 200, call: "SecretInspect(s)"},
		{name: "secret update", spec: "POST /secrets/s/update?version=2", body: `{}`, status: 200, call: "SecretUpdate(s, 2)"},
		{name: "secret rm", spec: "DELETE /secrets/s", status: 204},
		{name: "configs", spec: "GET /configs", status: 200, has: "[]"},
		{name: "config create", spec: "POST /configs/create", body: `{"Name":"s"}`, status: 201, has: `{"ID":"cfg1"}`},
		{name: "config without labels", spec: "GET /configs/s", status: 200, has: `"Labels":{}`},
		{name: "config", spec: "GET /configs/s", status: 200, has: `"Data":"c2Vlbg=="`},
		{name: "config update", spec: "POST /configs/s/update?version=2", body: `{}`, status: 200, call: "ConfigUpdate(s, 2)"},
		{name: "config update without version", spec: "POST /configs/s/update", body: `{}`, status: 400, has: "invalid config version ''"},
		{name: "config rm", spec: "DELETE /configs/s", status: 204},
	} {
		t.Run(q.name, q.run)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	s := newServer(t, newFake())
	for _, path := range []string{"/secrets", "/secrets/sec1"} {
		if w := do(s, "GET "+path, "", nil); strings.Contains(w.Body.String(), "aGlkZGVu") {
			t.Errorf("%s shows a secret's data: %s", path, w.Body)
		}
	}
}

// Every route of the API reference is here: served, or refused with a reason.
func TestReferenceIsCovered(t *testing.T) {
	s := newServer(t, newFake())
	for _, spec := range referenceRoutes(t) {
		method, path, _ := strings.Cut(spec, " ")
		path = strings.NewReplacer("{id}", "x", "{name}", "x").Replace(path)
		if rt, _ := s.routes.match(method, path); rt == nil {
			t.Errorf("%s has no route", spec)
		}
	}
}

func referenceRoutes(t *testing.T) []string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(strings.TrimSpace(string(dir)) + "/swagger.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	path := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimRight(line, "\n")
		switch m := strings.TrimSuffix(strings.TrimPrefix(line, "    "), ":"); {
		case strings.HasPrefix(line, "  /"):
			path = strings.TrimSuffix(strings.TrimSpace(line), ":")
		case path != "" && slices.Contains([]string{"get", "head", "post", "put", "delete"}, m):
			all = append(all, strings.ToUpper(m)+" "+path)
		}
	}
	if len(all) < 100 {
		t.Fatalf("only %d routes found in the reference", len(all))
	}
	return all
}

func TestErrorClasses(t *testing.T) {
	for class, want := range map[api.Class]int{
		api.Internal: 500, api.Invalid: 400, api.NotFound: 404, api.Exists: 409, api.Conflict: 409, api.OutOfSequence: 500,
		api.Unavailable: 503, api.NotLeader: 503, api.PermissionDenied: 403, api.Unauthenticated: 401, api.Unimplemented: 501,
		api.DeadlineExceeded: 504, api.ResourceExhausted: 500, api.NotModified: 304,
	} {
		f := newFake()
		f.fail("ContainerStart", api.Errorf(class, "a \"reason\""))
		w := do(newServer(t, f), "POST /containers/web/start", "", nil)
		if w.Code != want {
			t.Errorf("class %d: status %d, want %d", class, w.Code, want)
		}
		if body := w.Body.String(); want != 304 && body != `{"message":"a \"reason\""}`+"\n" {
			t.Errorf("class %d: body %s", class, body)
		}
	}
}

func TestHeaders(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		w := do(newServer(t, newFake()), method+" /_ping", "", nil)
		for k, want := range map[string]string{
			"Api-Version": "1.56", "Docker-Experimental": "false", "Ostype": "linux", "Server": "Legion/1.2.3 (linux)",
			"Swarm": "active/manager", "Builder-Version": "1", "Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache",
		} {
			if got := w.Header().Get(k); got != want {
				t.Errorf("%s /_ping: %s is %q, want %q", method, k, got, want)
			}
		}
	}
}

func TestPanicIsAnswered(t *testing.T) {
	s := newServer(t, newFake(), func(c *Config) { c.Volumes = panicking{} })
	w := do(s, "DELETE /volumes/v", "", nil)
	if w.Code != 500 || !strings.Contains(w.Body.String(), "its log has the details") {
		t.Errorf("status %d, body %s", w.Code, w.Body)
	}
}

type panicking struct{ Volumes }

func TestAuthorize(t *testing.T) {
	var seen []string
	f := newFake()
	s := newServer(t, f, func(c *Config) {
		c.Authorize = func(r *http.Request, rt Route) error {
			seen = append(seen, rt.Operation+" "+r.PathValue("name"))
			if rt.Operation == "ServiceDelete" {
				return api.Errorf(api.PermissionDenied, "not you")
			}
			return nil
		}
	})
	if w := do(s, "DELETE /v1.50/services/web", "", nil); w.Code != 403 || len(f.took()) != 0 {
		t.Errorf("status %d, calls %s", w.Code, f.took())
	}
	if w := do(s, "GET /services/web", "", nil); w.Code != 200 {
		t.Errorf("status %d", w.Code)
	}
	if want := []string{"ServiceDelete web", "ServiceInspect web"}; !slices.Equal(seen, want) {
		t.Errorf("asked about %q, want %q", seen, want)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Error(err)
	}
}

func TestLateErrorsAreInTheStream(t *testing.T) {
	f := newFake()
	f.fail("late", errors.New("registry gone"))
	w := do(newServer(t, f), "POST /images/create?fromImage=app&tag=1", "", nil)
	if w.Code != 200 || !strings.HasSuffix(w.Body.String(), `{"errorDetail":{"message":"registry gone"},"error":"registry gone"}`+"\n") {
		t.Errorf("status %d, body %s", w.Code, w.Body)
	}
	f.fail("ImagePull", api.Errorf(api.NotFound, "no such image"))
	if w := do(newServer(t, f), "POST /images/create?fromImage=app&tag=1", "", nil); w.Code != 404 {
		t.Errorf("an error before the stream: status %d, body %s", w.Code, w.Body)
	}
}

// What clients send that says nothing must be taken as nothing.
func TestEmptyValuesInCreate(t *testing.T) {
	body := `{"Image":"a","MacAddress":"","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":""}]},"Dns":[],"RestartPolicy":{}},"NetworkingConfig":{"EndpointsConfig":{"bridge":{"IPAddress":"","MacAddress":"","Gateway":""}}}}`
	for _, version := range []string{"1.24", "1.44", "1.56"} {
		if w := do(newServer(t, newFake()), "POST /v"+version+"/containers/create", body, nil); w.Code != 201 {
			t.Errorf("%s: status %d, body %s", version, w.Code, w.Body)
		}
	}
}

// The container-wide MAC address goes to the endpoint, until 1.52.
func TestMACAddressMoves(t *testing.T) {
	for version, want := range map[string]int{"1.51": 1, "1.52": 0} {
		var got int
		f := newFake()
		s := newServer(t, f, func(c *Config) {
			c.Containers = creating{f, func(o engine.CreateOptions) { got = len(o.Networking.EndpointsConfig) }}
		})
		if w := do(s, "POST /v"+version+"/containers/create", `{"Image":"a","MacAddress":"02:42:ac:11:00:02"}`, nil); w.Code != 201 || got != want {
			t.Errorf("%s: status %d, %d endpoints, want %d", version, w.Code, got, want)
		}
	}
}

type creating struct {
	Containers
	see func(engine.CreateOptions)
}

func (c creating) ContainerCreate(ctx context.Context, o engine.CreateOptions) (*container.CreateResponse, error) {
	c.see(o)
	return c.Containers.ContainerCreate(ctx, o)
}
