package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake is a driver whose machines are words.
type fake struct {
	mu      sync.Mutex
	running map[string]bool
	did     []string

	fails  map[string]error // by "verb name"
	create func(ctx context.Context) error
	urls   map[string]string
	cuts   map[string][]string // "*": everything
}

func (f *fake) Disconnect(context.Context, *Machine, []string) error { return nil }
func (f *fake) Connect(context.Context, *Machine, []string) error    { return nil }

func (f *fake) Cuts(m *Machine) ([]string, bool, error) {
	from := f.cuts[m.Name]
	return from, slices.Contains(from, "*"), nil
}

func (f *fake) do(verb string, m *Machine, running bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := verb + " " + m.Name
	f.did = append(f.did, what)
	if err := f.fails[what]; err != nil {
		return err
	}
	f.running[m.Name] = running
	return nil
}

func (f *fake) Prepare(_ context.Context, m *Machine) error { return f.do("prepare", m, false) }

func (f *fake) Create(ctx context.Context, m *Machine) error {
	if f.create != nil {
		if err := f.create(ctx); err != nil {
			return err
		}
	}
	return f.do("create", m, true)
}
func (f *fake) Start(_ context.Context, m *Machine) error { return f.do("start", m, true) }
func (f *fake) Stop(_ context.Context, m *Machine) error  { return f.do("stop", m, false) }
func (f *fake) Kill(_ context.Context, m *Machine) error  { return f.do("kill", m, false) }
func (f *fake) Remove(ctx context.Context, m *Machine) error {
	return errors.Join(ctx.Err(), f.do("remove", m, false))
}

func (f *fake) State(_ context.Context, m *Machine) (State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[m.Name] {
		return StateRunning, nil
	}
	return StateStopped, f.fails["state "+m.Name]
}
func (f *fake) Address(*Machine) (string, error) { return "192.0.2.1", nil }
func (f *fake) Endpoint(m *Machine) (Endpoint, error) {
	return Endpoint{URL: f.urls[m.Name]}, nil
}

func (f *fake) Run(ctx context.Context, m *Machine, c Command) (int, error) {
	if err := f.fails["run "+m.Name]; err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", c.Line)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = m.Dir, c.Stdin, c.Stdout, c.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func newFleet(t *testing.T) (*Fleet, *fake, *bytes.Buffer) {
	t.Helper()
	d := &fake{running: map[string]bool{}, fails: map[string]error{}, urls: map[string]string{}}
	var out bytes.Buffer
	f, err := New(Config{Dir: filepath.Join(t.TempDir(), "machines"), Drivers: map[string]Driver{"fake": d}, Progress: &out})
	if err != nil {
		t.Fatal(err)
	}
	return f, d, &out
}

func mustCreate(t *testing.T, f *Fleet, names ...string) {
	t.Helper()
	if err := f.Create(t.Context(), names, Spec{Driver: "fake", Options: map[string]int{"x": 1}}); err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q: want %q in it", err, w)
		}
	}
}

func TestLife(t *testing.T) {
	f, d, out := newFleet(t)
	mustCreate(t, f, "b", "a")
	if names, err := f.Names(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("names %v, %v", names, err)
	}
	if want := []string{"prepare b", "prepare a"}; !slices.Equal(d.did[:2], want) {
		t.Errorf("prepared %v, want the order of the names: %v", d.did[:2], want)
	}
	m, _, err := f.Machine("a")
	if err != nil || !m.Made || m.Driver != "fake" || m.Format != formatVersion {
		t.Errorf("%+v, %v", m, err)
	}
	var options map[string]int
	if err := m.DecodeOptions(&options); err != nil || options["x"] != 1 {
		t.Errorf("options %v, %v", options, err)
	}
	wantError(t, f.Create(t.Context(), []string{"a"}, Spec{Driver: "fake"}), `machine "a" already exists`)
	d.did = nil
	for _, v := range []Verb{VerbStart, VerbRestart, VerbKill, VerbKill, VerbStop, VerbRestart, VerbStop, VerbStart} {
		if err := f.Do(t.Context(), v, []string{"a"}); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	if diff := cmp.Diff([]string{"stop a", "start a", "kill a", "start a", "stop a", "start a"}, d.did); diff != "" {
		t.Error(diff)
	}
	for _, line := range []string{"(a) is running already", "(a) is stopped already", "(b) ready after"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("progress has no %q:\n%s", line, out)
		}
	}
	wantError(t, f.Do(t.Context(), VerbStart, []string{"a", "c"}), "c: ", "does not exist", "legion machine ls")
	if err := f.Remove(t.Context(), []string{"a", "b"}, false); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(f.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the storage folder is left: %v", err)
	}
	wantError(t, f.Remove(t.Context(), []string{"a"}, false), "does not exist")
	if err := f.Remove(t.Context(), []string{"a"}, true); err != nil {
		t.Errorf("rm -f of what is not there: %v", err)
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	f, d, _ := newFleet(t)
	d.fails["create b"] = errors.New("no luck")
	wantError(t, f.Create(t.Context(), []string{"a", "b"}, Spec{Driver: "fake"}), "b: no luck")
	if names, _ := f.Names(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("left are %v", names)
	}
	d.fails["prepare c"] = errors.New("no room")
	wantError(t, f.Create(t.Context(), []string{"c"}, Spec{Driver: "fake"}), "c: no room")

	// An interrupted one is removed although its context has ended.
	ctx, cancel := context.WithCancel(t.Context())
	d.create = func(ctx context.Context) error { cancel(); return ctx.Err() }
	if err := f.Create(ctx, []string{"d"}, Spec{Driver: "fake"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if names, _ := f.Names(); !slices.Equal(names, []string{"a"}) {
		t.Errorf("left are %v", names)
	}
	d.fails["remove d"] = errors.New("stuck")
	d.create = func(context.Context) error { return errors.New("no luck") }
	wantError(t, f.Create(t.Context(), []string{"d"}, Spec{Driver: "fake"}), "no luck", "stuck", "legion machine rm -f d")
}

func TestBadNames(t *testing.T) {
	f, _, _ := newFleet(t)
	for _, n := range []string{"", "-a", "a-", "a_b", "a/b", "..", ".", "a b", strings.Repeat("a", 64), "ä"} {
		if err := f.Create(t.Context(), []string{n}, Spec{Driver: "fake"}); err == nil || !strings.Contains(err.Error(), "invalid machine name") {
			t.Errorf("%q: %v", n, err)
		}
		if err := f.Remove(t.Context(), []string{n}, true); err == nil {
			t.Errorf("rm -f %q succeeded", n)
		}
	}
	wantError(t, f.Create(t.Context(), []string{"a", "a"}, Spec{Driver: "fake"}), "named twice")
	wantError(t, f.Create(t.Context(), nil, Spec{Driver: "fake"}), "no machine name")
	wantError(t, f.Create(t.Context(), []string{"a"}, Spec{Driver: "cloud"}), `unknown driver "cloud"`, "fake")
	_, err := New(Config{Dir: "relative"})
	wantError(t, err, "MACHINE_STORAGE_PATH")
}

func TestBrokenRecords(t *testing.T) {
	f, _, _ := newFleet(t)
	for name, content := range map[string]string{
		"garbled": "{", "newer": `{"Format":99,"Name":"newer"}`, "renamed": `{"Format":1,"Name":"x"}`, "half": `{"Format":1,"Name":"half","Driver":"fake"}`,
		"foreign": `{"Format":1,"Name":"foreign","Driver":"cloud"}`,
	} {
		dir := filepath.Join(f.Dir(), machinesDir, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, configFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := f.List(t.Context(), "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]string{"garbled": "config.json", "newer": "format 99", "renamed": "renamed", "half": "interrupted", "foreign": "unknown driver"}
	for _, r := range rows {
		if r.State != StateError || !strings.Contains(r.Error, words[r.Name]) {
			t.Errorf("%s: %s, %s", r.Name, r.State, r.Error)
		}
	}
	wantError(t, f.Do(t.Context(), VerbStart, []string{"half"}), "never finished", "rm -f half")
	if err := f.Remove(t.Context(), []string{"garbled", "newer", "renamed", "half", "foreign"}, true); err != nil {
		t.Error(err)
	}
	if names, _ := f.Names(); len(names) > 0 {
		t.Errorf("left are %v", names)
	}
}

// Two commands on one machine wait for each other, in any process.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d", "lock")
	unlock, err := Lock(t.Context(), path, "first")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	_, err = Lock(ctx, path, "second")
	wantError(t, err, "first (pid ")
	unlock()
	const many = 20
	held, most := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			unlock, err := Lock(t.Context(), path, "one of many")
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			held++
			most = max(most, held)
			mu.Unlock()
			mu.Lock()
			held--
			mu.Unlock()
			unlock()
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("%d had the lock at once", most)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file is left")
	}
}

func TestCopy(t *testing.T) {
	f, d, _ := newFleet(t)
	mustCreate(t, f, "a", "b", "off")
	d.fails["run off"] = errors.New("it is not running")
	here := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	inside := func(name, path string) string { return filepath.Join(f.folder.machine(name), path) }
	write(here+"/it's one", "1")
	write(here+"/dir/sub/two", "2")
	if err := os.Symlink("dir/sub/two", here+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(inside("a", "there"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, to  string
		recursive bool
		file      string
	}{
		{here + "/it's one", "a:there", false, inside("a", "there/it's one")},
		{here + "/it's one", "a:there/new name", false, inside("a", "there/new name")},
		{"a:there/new name", "b:", false, inside("b", "new name")},
		{"a:there/new name", here + "/back", false, here + "/back"},
		{here + "/link", "b:linked", false, inside("b", "linked")},
		{here + "/dir", "b:copy", true, inside("b", "copy/sub/two")},
		{"b:copy/", here + "/dir/", true, here + "/dir/copy/sub/two"},
	} {
		if err := f.Copy(t.Context(), c.from, c.to, c.recursive); err != nil {
			t.Errorf("%s to %s: %v", c.from, c.to, err)
		}
		info, err := os.Stat(c.file)
		if err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s to %s: %v, %v", c.from, c.to, info, err)
		}
	}
	wantError(t, f.Copy(t.Context(), here+"/dir", "a:x", false), "is a folder: say -r")
	wantError(t, f.Copy(t.Context(), here+"/none", "a:x", false), "none")
	wantError(t, f.Copy(t.Context(), here+"/back", "off:x", false), "copy "+here+"/back to off:x: it is not running")
	wantError(t, f.Copy(t.Context(), "off:x", here+"/c", false), "copy off:x to "+here+"/c: it is not running")
	if err := f.Copy(t.Context(), here+"/dir", "a:x", false); strings.Contains(err.Error(), "archive") {
		t.Error("the receiver's complaint that nothing came:", err)
	}
	wantError(t, f.Copy(t.Context(), here+"/back", "a:no/such/x", false), "no/such")
	wantError(t, f.Copy(t.Context(), here+"/back", "c:x", false), `machine "c" does not exist`)
	wantError(t, f.Copy(t.Context(), here+"/back", here+"/c", false), "neither side names a machine")
}

func TestInspect(t *testing.T) {
	f, _, _ := newFleet(t)
	mustCreate(t, f, "a")
	m, _, err := f.Machine("a")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Inspect(&b, m, Endpoint{URL: "unix:///x"}, "192.0.2.1", "{{.Name}} {{.Address}} {{.URL}} {{.DriverName}} {{.Driver.IPAddress}} {{.Driver.MachineName}}"); err != nil || b.String() != "a 192.0.2.1 unix:///x fake 192.0.2.1 a\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	if err := Inspect(&b, m, Endpoint{}, "192.0.2.1", ""); err != nil || !json.Valid(b.Bytes()) {
		t.Errorf("%q, %v", b.String(), err)
	}
	m.Engine = Engine{Flags: []string{"--label=rack=1", "--registry-mirror=http://m", "--debug"}, Env: []string{"A=b"}}
	b.Reset()
	if err := Inspect(&b, m, Endpoint{}, "", "{{json .HostOptions.EngineOptions}}"); err != nil ||
		b.String() != `{"ArbitraryFlags":["debug"],"Env":["A=b"],"InsecureRegistry":[],"Labels":["rack=1"],"RegistryMirror":["http://m"]}`+"\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	if err := Inspect(&b, m, Endpoint{}, "192.0.2.1", "{{prettyjson .Driver}}"); err != nil || !strings.Contains(b.String(), "\n    \"IPAddress\": \"192.0.2.1\",\n") {
		t.Errorf("%q, %v", b.String(), err)
	}
	wantError(t, Inspect(io.Discard, m, Endpoint{}, "", "{{.Nothing}}"), "--format")
}

func TestStorageDir(t *testing.T) {
	for _, c := range []struct {
		env  map[string]string
		uid  int
		want string
	}{
		{nil, 0, DefaultStorageDir},
		{map[string]string{"HOME": "/root"}, 0, DefaultStorageDir},
		{map[string]string{"HOME": "/home/u"}, 1000, "/home/u/.legion/machine"},
		{map[string]string{"HOME": "/home/u", "MACHINE_STORAGE_PATH": "/m"}, 1000, "/m"},
	} {
		if got := StorageDir(func(k string) string { return c.env[k] }, c.uid); got != c.want {
			t.Error(fmt.Sprint(c), got)
		}
	}
}
