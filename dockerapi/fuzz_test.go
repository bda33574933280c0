package dockerapi

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"pgregory.net/rapid"
)

// Whatever a filter is written as, it is refused or means the same in both forms.
func FuzzFilters(f *testing.F) {
	for _, s := range []string{"", "{}", `{"label":["a=b","c"]}`, `{"label":{"a=b":true}}`, `{"x":null}`, `[]`, `{"x":1}`, `{"x":{"y":1}}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFilters(s)
		if err != nil {
			if statusOf(err) != http.StatusBadRequest {
				t.Errorf("%q: status %d", s, statusOf(err))
			}
			return
		}
		sets := map[string]map[string]bool{}
		for k, vs := range got {
			sets[k] = map[string]bool{}
			for _, v := range vs {
				sets[k][v] = true
			}
		}
		b, err := json.Marshal(sets)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseFilters(string(b))
		if err != nil {
			t.Fatalf("%q as sets: %v", s, err)
		}
		for k := range got {
			if want := slices.Sorted(maps.Keys(sets[k])); !slices.Equal(again[k], want) {
				t.Errorf("%q: %v as sets, want %v", s, again[k], want)
			}
		}
	})
}

// No request, however odd, gets an answer that is not one.
func FuzzRequest(f *testing.F) {
	f.Add("POST", "/v1.50/services/create", "", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`, "application/json")
	f.Add("POST", "/containers/create", "name=x&platform=linux/amd64", `{"Image":"a","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"1"}]}}}`, "application/json")
	f.Add("POST", "/containers/web/exec", "", `{"Cmd":["ls"]}`, "application/json")
	f.Add("POST", "/services/web/update", "version=1&rollback=previous", `{}`, "application/json; charset=utf-8")
	f.Add("GET", "/images/a/b/json", "platform={}", "", "")
	f.Add("GET", "/containers/web/logs", "stdout=1&since=1.2&tail=all", "", "")
	f.Add("DELETE", "/v9/x//y", "%", "", "")
	f.Add("POST", "/images/create", "fromImage=a&tag=sha256:x", "", "")
	f.Fuzz(func(t *testing.T, method, path, query, body, contentType string) {
		u := &url.URL{Path: path, RawQuery: query}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://d/", bytes.NewReader([]byte(body)))
		if err != nil {
			return
		}
		r.URL.Path, r.URL.RawQuery = u.Path, u.RawQuery
		r.Header.Set("Content-Type", contentType)
		q := r.URL.Query()
		// What streams until the client leaves is not for here.
		if q.Get("follow") != "" || bytes.Contains([]byte(path), []byte("/wait")) || bytes.Contains([]byte(path), []byte("/events")) || bytes.Contains([]byte(path), []byte("/stats")) {
			return
		}
		w := httptest.NewRecorder()
		newServer(t, newFake()).ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError && !bytes.Contains(w.Body.Bytes(), []byte("can't be taken over")) {
			t.Errorf("%s %s?%s: %s", method, path, query, w.Body)
		}
		if w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s %s: %s", method, path, w.Body)
		}
	})
}

// What goes into the framing comes out of the client's.
func FuzzFraming(f *testing.F) {
	f.Add([]byte("a\nb"), []byte(""), 3, 1)
	f.Add(bytes.Repeat([]byte("x"), 1<<10), []byte("err"), 1, 3000) // longer than a frame may be
	f.Fuzz(func(t *testing.T, out, errs []byte, cut, times int) {
		out = bytes.Repeat(out, min(max(times, 0), (2*maxFrame+5)/max(len(out), 1)))
		var wire, gotOut, gotErr bytes.Buffer
		m := newMux(&wire)
		o, e := m.stream(frameStdout), m.stream(frameStderr)
		cut = min(max(cut, 0), len(out))
		for _, part := range [][]byte{out[:cut], out[cut:]} {
			if n, err := o.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
			if _, err := e.Write(errs); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := stdcopy.StdCopy(&gotOut, &gotErr, &wire); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(gotOut.Bytes(), out) || !bytes.Equal(gotErr.Bytes(), append(bytes.Clone(errs), errs...)) {
			t.Errorf("%d and %d bytes back", gotOut.Len(), gotErr.Len())
		}
	})
}

// Names with slashes come out of paths whole, whatever they are.
func TestNamesInPaths(t *testing.T) {
	s := newServer(t, newFake())
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z0-9.]{1,5}(/(json|get|tag|push|[a-z]{1,4})){0,3}`).Draw(t, "name")
		if name == "search" || name == "get" || name == "create" {
			return
		}
		for _, verb := range []string{"json", "history", "get"} {
			rt, got := s.routes.match("GET", "/images/"+name+"/"+verb)
			if rt == nil || got != name || !bytes.HasSuffix([]byte(rt.Pattern), []byte("/"+verb)) {
				t.Fatalf("%s of %s: %+v, %q", verb, name, rt, got)
			}
		}
		if rt, got := s.routes.match("DELETE", "/images/"+name); rt == nil || got != name {
			t.Fatalf("delete of %s: %q", name, got)
		}
	})
}

func TestNoFrameForNothing(t *testing.T) {
	if n, err := newMux(io.Discard).stream(frameStdout).Write(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
}
