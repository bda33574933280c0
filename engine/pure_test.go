package engine

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/legion-swarm/legion/api"
)

func TestParseBind(t *testing.T) {
	for _, c := range []struct {
		spec string
		want container.MountPoint
	}{
		{"/a:/b", container.MountPoint{Type: mount.TypeBind, Source: "/a", Destination: "/b", RW: true, Propagation: "rprivate"}},
		{"/a:/b:ro,rslave", container.MountPoint{Type: mount.TypeBind, Source: "/a", Destination: "/b", Mode: "ro,rslave", Propagation: "rslave"}},
		{"vol:/b/", container.MountPoint{Type: mount.TypeVolume, Name: "vol", Driver: "local", Destination: "/b", RW: true}},
		{"/only", container.MountPoint{Type: mount.TypeVolume, Driver: "local", Destination: "/only", RW: true}},
		{"vol:/b:nocopy", container.MountPoint{Type: mount.TypeVolume, Name: "vol", Driver: "local", Destination: "/b", Mode: "nocopy", RW: true}},
	} {
		m, err := parseBind(c.spec, "")
		if err != nil || m.MountPoint != c.want {
			t.Errorf("%s: %+v, %v", c.spec, m.MountPoint, err)
		}
	}
	for _, bad := range []string{"", ":", "a:b", "/a:/", "/a:/b:zz", "/a:/b:ro,rw", "/a:/b:nocopy", "v!:/b", "a:/b:ro:x", "/a::/b", "vol:/b:rslave", "x:relative"} {
		if _, err := parseBind(bad, ""); !api.Is(err, api.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Docker and the kernel take more for a name than domains do.
func TestHostnames(t *testing.T) {
	for _, ok := range []string{"", "web-1.example.com", "UPPER_under.dots.", "-x", "two words", "ünï", strings.Repeat("a", 64)} {
		if err := validateConfig(&container.Config{Hostname: ok, Domainname: ok}); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"a\nb", "a\tb", "a\x00b", strings.Repeat("a", 65)} {
		if err := validateConfig(&container.Config{Hostname: bad}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "invalid hostname format") {
			t.Errorf("%q: %v", bad, err)
		}
		if err := validateConfig(&container.Config{Domainname: bad}); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "invalid domain name format") {
			t.Errorf("domain %q: %v", bad, err)
		}
	}
}

func FuzzParseBind(f *testing.F) {
	f.Add("/a:/b:ro,z")
	f.Add("vol:/b")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseBind(s, "")
		if err == nil && (!strings.HasPrefix(m.Destination, "/") || m.Destination == "/" || m.Destination != path.Clean(m.Destination)) {
			t.Fatalf("%q mounts at %q", s, m.Destination)
		}
	})
}

func TestParseMountRefuses(t *testing.T) {
	for _, c := range []struct {
		m    mount.Mount
		says string
	}{
		{mount.Mount{Type: "bind", Source: "/a"}, "field Target must not be empty"}, {mount.Mount{Type: "bind", Target: "/a"}, "field Source must not be empty"},
		{mount.Mount{Type: "bind", Source: "a", Target: "/a"}, "mount path must be absolute"}, {mount.Mount{Type: "tmpfs", Source: "x", Target: "/a"}, "field Source must not be specified"},
		{mount.Mount{Type: "bind", Source: "/a", Target: "/a", VolumeOptions: &mount.VolumeOptions{}}, "field VolumeOptions must not be specified"},
		{mount.Mount{Type: "magic", Target: "/a"}, "mount type unknown"}, {mount.Mount{Type: "volume", Target: "/"}, "can't be '/'"},
		{mount.Mount{Type: "volume", Source: "v1", Target: "/a", VolumeOptions: &mount.VolumeOptions{Subpath: "../x"}}, "relative path"},
	} {
		if _, err := parseMount(&c.m); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c.m, err)
		}
	}
	missing, err := parseMount(&mount.Mount{Type: "bind", Source: "/no/such", Target: "/a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := missing.checkSource(); err == nil || !strings.HasSuffix(err.Error(), "bind source path does not exist: /no/such") {
		t.Error(err)
	}
}

func TestPlanMounts(t *testing.T) {
	c := &container.Config{Volumes: map[string]struct{}{"/data": {}, "/bound": {}}}
	h := &container.HostConfig{Binds: []string{"/src:/bound"}, Tmpfs: map[string]string{"/t": "size=1m"}}
	list, err := planMounts(c, h, nil)
	if err != nil || len(list) != 3 || list[0].Destination != "/bound" || !list[1].Anonymous || list[2].Type != mount.TypeTmpfs {
		t.Errorf("%+v, %v", list, err)
	}
	h.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t/"}}
	if _, err := planMounts(c, h, nil); err == nil || err.Error() != "Duplicate mount point: /t" {
		t.Error(err)
	}
}

// Compose shows the ports that a container is listed with.
func TestExposedPorts(t *testing.T) {
	for mode, want := range map[container.NetworkMode]int{"bridge": 1, "mine": 1, "host": 0, "none": 0, "container:c1": 0} {
		for phase, runs := range map[phase]int{phaseRunning: 1, phaseCreated: 0} {
			r := &record{Phase: phase, Config: &container.Config{ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}}, Host: &container.HostConfig{NetworkMode: mode}}
			if got := portSummary(r); len(got) != want*runs {
				t.Errorf("%s, %v: %+v", mode, phase, got)
			}
		}
	}
}

// The command line says 0, SDKs say nothing: tools that compare see the same.
func TestNoPidsLimit(t *testing.T) {
	for given, want := range map[int64]bool{-1: false, 0: false, 7: true} {
		h := &container.HostConfig{Resources: container.Resources{PidsLimit: &given}}
		(&Engine{host: &hostFacts{}}).completeHost(&container.Config{}, h)
		if (h.PidsLimit != nil) != want {
			t.Errorf("%d: %v", given, h.PidsLimit)
		}
	}
}

func TestMergeImage(t *testing.T) {
	img := &Image{}
	img.Config.Config = ocispec.ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}, Env: []string{"P=0", "A=1", "B=2"}, Labels: map[string]string{"x": "1"}, WorkingDir: "/w"}
	for _, c := range []struct {
		own  container.Config
		want string
	}{
		{container.Config{}, "/e c"}, {container.Config{Cmd: []string{"d"}}, "/e d"},
		{container.Config{Entrypoint: []string{"/f"}}, "/f"}, {container.Config{Entrypoint: []string{""}, Cmd: []string{"d"}}, "d"},
	} {
		program, args := command(mergeImage(&c.own, img))
		if got := strings.Join(append([]string{program}, args...), " "); got != c.want {
			t.Errorf("%+v: %q, want %q", c.own, got, c.want)
		}
	}
	c := mergeImage(&container.Config{Env: []string{"A=9", "B", "C=3"}, Labels: map[string]string{"y": "2"}}, img)
	if !slices.Equal(c.Env, []string{"A=9", "C=3", "P=0"}) || len(c.Labels) != 2 || c.WorkingDir != "/w" || len(img.Config.Config.Labels) != 1 {
		t.Errorf("%+v", c)
	}
}

func TestProbePlan(t *testing.T) {
	p := planProbe(&container.Config{Healthcheck: &HealthConfig{Test: []string{"CMD-SHELL", "x"}, Retries: 2, StartPeriod: time.Minute}})
	if !slices.Equal(p.args, []string{"/bin/sh", "-c", "x"}) || p.interval != probeInterval || p.startInterval != probeStartInterval {
		t.Errorf("%+v", p)
	}
	bad, good := &container.HealthcheckResult{ExitCode: 1}, &container.HealthcheckResult{}
	h := container.Health{Status: container.Starting}
	for i, s := range []struct {
		r      *container.HealthcheckResult
		age    time.Duration
		status container.HealthStatus
		streak int
	}{
		{bad, time.Second, container.Starting, 0}, {bad, time.Hour, container.Starting, 1}, {bad, time.Hour, container.Unhealthy, 2},
		{good, time.Hour, container.Healthy, 0}, {bad, time.Second, container.Healthy, 1}, {bad, time.Hour, container.Unhealthy, 2}, {good, time.Hour, container.Healthy, 0},
	} {
		if h = p.apply(h, s.r, s.age); h.Status != s.status || h.FailingStreak != s.streak {
			t.Errorf("%d: %s %d, want %s %d", i, h.Status, h.FailingStreak, s.status, s.streak)
		}
	}
	if len(h.Log) != probeLog {
		t.Errorf("%d results kept", len(h.Log))
	}
	if d := p.next(container.Starting, time.Second); d != probeStartInterval {
		t.Error(d)
	}
	if d := p.next(container.Healthy, time.Second); d != probeInterval {
		t.Error(d)
	}
	if planProbe(&container.Config{Healthcheck: &HealthConfig{Test: []string{"NONE"}}}) != nil {
		t.Error("NONE is checked")
	}
}

func TestSplitter(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	text := "one\n\ntwo\r\n" + long + "\n" + strings.Repeat("y", maxLine) + "\nend"
	for _, chunk := range []int{1, 7, 1000, 1 << 20} {
		s := splitter{stream: "stdout"}
		var got strings.Builder
		var partial int
		rest := []byte(text)
		for len(rest) > 0 {
			n := min(chunk, len(rest))
			for _, m := range s.feed(rest[:n], time.Time{}) {
				got.Write(m.Line)
				if m.Partial {
					partial++
				} else {
					got.WriteByte('\n')
				}
			}
			rest = rest[n:]
		}
		last := s.flush(time.Time{})
		if len(last) != 1 || string(last[0].Line) != "end" || !last[0].Partial {
			t.Errorf("chunk %d: %+v", chunk, last)
		}
		if got.String()+"end" != text || partial != 1 {
			t.Errorf("chunk %d: %d bytes of %d, %d partial", chunk, got.Len(), len(text), partial)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	keys, err := parseDetachKeys("")
	if err != nil || !bytes.Equal(keys, []byte{16, 17}) {
		t.Errorf("%v, %v", keys, err)
	}
	if _, err := parseDetachKeys("ctrl-§"); !api.Is(err, api.Invalid) {
		t.Error(err)
	}
	for _, c := range []struct{ in, out string }{
		{"ab\x10\x11cd", "ab"}, {"a\x10b\x10\x10\x11", "a\x10b\x10"}, {"\x10\x11", ""},
	} {
		for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
			got, err := io.ReadAll(&escapes{r: wrap(strings.NewReader(c.in)), keys: keys})
			if !errors.Is(err, ErrDetached) || string(got) != c.out {
				t.Errorf("%q: %q, %v", c.in, got, err)
			}
		}
	}
}

func TestLookupUser(t *testing.T) {
	a := &accounts{passwd: []byte("root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:\n"), group: []byte("app:x:1001:\nextra:x:2000:app\n")}
	for _, c := range []struct {
		spec, home string
		uid, gid   uint32
		groups     []uint32
	}{
		{"", "/root", 0, 0, []uint32{0}}, {"app", "/home/app", 1000, 1001, []uint32{1001, 2000}}, {"1000", "/home/app", 1000, 1001, []uint32{1001, 2000}},
		{"app:extra", "/home/app", 1000, 2000, []uint32{2000}}, {"77:88", "/", 77, 88, []uint32{88}},
	} {
		u, home, err := lookupUser(a, c.spec, nil)
		if err != nil || u.UID != c.uid || u.GID != c.gid || home != c.home || !slices.Equal(u.AdditionalGids, c.groups) {
			t.Errorf("%q: %+v %s, %v", c.spec, u, home, err)
		}
	}
	for spec, want := range map[string]string{"nobody": "unable to find user nobody: no match", "app:nogroup": "unable to find group nogroup: no match"} {
		if _, _, err := lookupUser(a, spec, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		want      int
	}{
		{nil, nil, 14}, {[]string{"net_admin"}, nil, 15}, {nil, []string{"ALL"}, 0}, {[]string{"CHOWN"}, []string{"all"}, 1},
		{[]string{"ALL"}, nil, 41}, {[]string{"ALL"}, []string{"CAP_SYS_ADMIN"}, 40},
	} {
		got, err := capabilities(&container.HostConfig{CapAdd: c.add, CapDrop: c.drop}, allCapabilities())
		if err != nil || len(got) != c.want {
			t.Errorf("add %v drop %v: %d, %v", c.add, c.drop, len(got), err)
		}
	}
}

func TestEvents(t *testing.T) {
	b := newBus(time.Now)
	for range eventsKept + 10 {
		b.publish(events.Message{Type: events.ContainerEventType, Action: events.ActionStart})
	}
	past, s := b.subscribe()
	if len(past) != eventsKept || !slices.IsSortedFunc(past, func(a, b events.Message) int { return int(a.TimeNano - b.TimeNano) }) {
		t.Errorf("%d kept", len(past))
	}
	for range eventsQueue + 1 { // nobody reads
		b.publish(events.Message{})
	}
	if !b.isLost(s) || b.listeners() != 0 {
		t.Error("a reader that is too slow was not cut off")
	}
	m := &events.Message{Type: events.ContainerEventType, Action: "health_status: healthy", Scope: "local", Actor: events.Actor{ID: "abcdef", Attributes: map[string]string{"name": "web", "image": "app:1", "k": "v"}}}
	for _, c := range []struct {
		f    api.Filters
		want bool
	}{
		{nil, true}, {api.Filters{"event": {"health_status"}}, true}, {api.Filters{"event": {"start", "health_status: healthy"}}, true},
		{api.Filters{"event": {"die"}}, false}, {api.Filters{"container": {"web"}}, true}, {api.Filters{"container": {"abc"}}, true},
		{api.Filters{"service": {"we"}}, true}, {api.Filters{"service": {"web2"}}, false}, {api.Filters{"container": {""}}, false}, {api.Filters{"container": {"other"}}, false}, {api.Filters{"type": {"image"}}, false}, {api.Filters{"label": {"k=v"}}, true},
		{api.Filters{"label": {"k=w"}}, false}, {api.Filters{"image": {"app:1"}}, true}, {api.Filters{"image": {"app"}}, true}, {api.Filters{"scope": {"swarm"}}, false},
	} {
		if wanted(m, c.f) != c.want {
			t.Errorf("%v: not %v", c.f, c.want)
		}
	}
}

// The profile names no ABI that the kernel has not, and is shared by containers
// with the same capabilities.
func TestBuiltinSeccomp(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
	for _, x32 := range []bool{false, true} {
		c := newSeccompCache(x32)
		p, err := c.builtin(spec)
		if err != nil {
			t.Fatal(err)
		}
		if want := x32 && runtime.GOARCH == "amd64"; slices.Contains(p.Architectures, specs.ArchX32) != want {
			t.Errorf("x32 %v: architectures %v", x32, p.Architectures)
		}
		if again, err := c.builtin(spec); err != nil || again != p {
			t.Errorf("made again: %v", err)
		}
	}
}

// A port of a routed network has none of the host's, and is shown all the same.
func TestRoutedPorts(t *testing.T) {
	r := &record{Config: &container.Config{}, Host: &container.HostConfig{}, Ports: network.PortMap{
		network.MustParsePort("80/tcp"): {{HostIP: netip.IPv4Unspecified(), HostPort: "8080"}, {HostIP: netip.IPv6Unspecified()}},
		network.MustParsePort("81/tcp"): {{HostIP: netip.IPv4Unspecified()}, {HostIP: netip.IPv6Unspecified()}},
	}}
	got := portSummary(r)
	want := []container.PortSummary{
		{IP: netip.IPv4Unspecified(), PrivatePort: 80, PublicPort: 8080, Type: "tcp"}, {PrivatePort: 81, Type: "tcp"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
