package local

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/machine"
)

func mounts(t *testing.T, text string) []hierarchy {
	t.Helper()
	list, err := mountinfo.GetMountsFromReader(strings.NewReader(strings.TrimSpace(text)), mountinfo.PrefixFilter(cgroupRoot))
	if err != nil {
		t.Fatal(err)
	}
	return hierarchies(list)
}

const (
	unifiedHost = `30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot`
	hybridHost  = `
25 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
29 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory,release_agent=/x`
	oldHost = `
25 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
29 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`
)

// text is a mount on one line.
func (m mount) text() string {
	s := strings.TrimSpace(fmt.Sprintf("%s %s %s %s", m.Target, m.Type, m.Source, m.Data))
	if m.Optional {
		s += " optional"
	}
	return s
}

func TestPlan(t *testing.T) {
	common := []string{
		"/proc proc proc", "/sys sysfs sysfs", "/sys/fs/bpf bpf bpf mode=700 optional",
		"/dev/shm tmpfs shm mode=1777 optional", "/dev/mqueue mqueue mqueue optional",
	}
	own := []string{
		"/run tmpfs tmpfs mode=755", "/run/lock tmpfs tmpfs mode=1777,size=5m", "/run/machine/legion  /self", "/tmp  /m/a/tmp",
		"/etc/hostname  /m/a/hostname optional", "/etc/hosts  /f/hosts optional", "/etc/resolv.conf  /m/a/resolv.conf optional",
	}
	for _, c := range []struct {
		name, host string
		cgroups    []string
		links      [][2]string
		unified    string
	}{
		{"v2", unifiedHost, []string{"/sys/fs/cgroup cgroup2 cgroup2"}, nil, "/sys/fs/cgroup"},
		{"hybrid", hybridHost, []string{
			"/sys/fs/cgroup tmpfs tmpfs mode=755,size=1m", "/sys/fs/cgroup/cpu,cpuacct cgroup cgroup cpu,cpuacct", "/sys/fs/cgroup/memory cgroup cgroup memory",
			"/sys/fs/cgroup/systemd cgroup cgroup none,name=systemd", "/sys/fs/cgroup/unified cgroup2 cgroup2",
		}, [][2]string{{"/sys/fs/cgroup/cpu", "cpu,cpuacct"}, {"/sys/fs/cgroup/cpuacct", "cpu,cpuacct"}}, "/sys/fs/cgroup/unified"},
		{"v1", oldHost, []string{"/sys/fs/cgroup tmpfs tmpfs mode=755,size=1m", "/sys/fs/cgroup/memory cgroup cgroup memory"}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &machine.Machine{Record: machine.Record{Name: "a", Engine: machine.Engine{Flags: []string{"--label=x"}, Env: []string{"A=b"}}}, Dir: "/m/a"}
			p := planFor(m, facts{hierarchies: mounts(t, c.host), path: "/usr/bin:.:/opt", proxy: []string{"HTTP_PROXY=p"}}, "/f/hosts", "/self")
			var got []string
			for _, m := range p.Mounts {
				got = append(got, m.text())
			}
			if diff := cmp.Diff(slices.Concat(common, c.cgroups, own), got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(c.links, p.Links); diff != "" {
				t.Error(diff)
			}
			if p.Unified != c.unified || p.Hostname != "a" {
				t.Errorf("unified %q, host name %q", p.Unified, p.Hostname)
			}
			wantDaemon := "/run/machine/legion daemon --data-root /m/a/data --config-file /m/a/daemon.json --host unix:///run/legion/legion.sock --host unix:///m/a/legion.sock --label=x"
			if got := strings.Join(p.Daemon, " "); got != wantDaemon {
				t.Errorf("daemon %s", got)
			}
			wantEnv := []string{"PATH=/usr/bin:/opt:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin:/run/machine", "HOME=/root", "LANG=C.UTF-8", "DOCKER_HOST=unix:///run/legion/legion.sock", "HTTP_PROXY=p", "A=b"}
			if diff := cmp.Diff(wantEnv, p.Env); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestGroups(t *testing.T) {
	all := mounts(t, hybridHost)
	got := groupsIn("4:memory:/user/1\n3:cpu,cpuacct:/\n2:pids:/x\n1:name=systemd:/s\n0::/u v\n", all)
	want := []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory/user/1", "/sys/fs/cgroup/systemd/s", "/sys/fs/cgroup/unified/u v"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := mounts(t, unifiedHost)[0].group("legion-machine", "a"); got != "/sys/fs/cgroup/legion-machine/a" {
		t.Error(got)
	}
}

func TestStorageFolders(t *testing.T) {
	for dir, word := range map[string]string{
		"/var/lib/legion-machine/machines/a": "", "/tmpx/a": "", "/tmp/x": "/tmp of its own", "/run/user/0/m": "/run of its own", "/dev/shm/a": "/dev",
		"/" + strings.Repeat("x", 100): "longer than a socket's",
	} {
		got := validateDir(dir)
		if (got == "") != (word == "") || !strings.Contains(got, word) {
			t.Errorf("%s: %q", dir, got)
		}
	}
}

func TestResolver(t *testing.T) {
	for text, want := range map[string]bool{
		"": false, "nameserver 127.0.0.53\n": false, "nameserver ::1\nsearch x": false, "nameserver 127.0.0.1\nnameserver 192.0.2.53": true, "# nameserver 192.0.2.1": false,
	} {
		if got := usableResolver([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestSubnet(t *testing.T) {
	parse := netip.MustParsePrefix
	for _, c := range []struct {
		taken []netip.Prefix
		want  string
	}{
		{nil, "192.168.99.0/24"},
		{[]netip.Prefix{parse("0.0.0.0/0"), parse("10.0.0.0/8")}, "192.168.99.0/24"},
		{[]netip.Prefix{parse("192.168.99.7/32"), parse("192.168.98.0/25"), parse("192.168.96.0/23")}, "192.168.95.0/24"},
	} {
		got, err := chooseSubnet(c.taken)
		if err != nil || got != parse(c.want) {
			t.Errorf("%v: %v, %v", c.taken, got, err)
		}
	}
	if _, err := chooseSubnet([]netip.Prefix{parse("192.168.0.0/16")}); err == nil {
		t.Error("a subnet where none is free")
	}
}

func TestAddresses(t *testing.T) {
	subnet := netip.MustParsePrefix("192.168.99.0/24")
	rapid.Check(t, func(t *rapid.T) {
		hosts := map[string]netip.Addr{}
		given := map[netip.Addr]bool{gateway(subnet): true}
		ports := map[string]bool{}
		for i := range 253 {
			name := fmt.Sprint("m", i)
			a, err := allocate(subnet, hosts)
			if err != nil {
				t.Fatal(err)
			}
			if last := a.As4()[3]; given[a] || !subnet.Contains(a) || last == 0 || last == 255 || ports[port(a)] {
				t.Fatalf("machine %d is given %v", i, a)
			}
			given[a], ports[port(a)] = true, true
			hosts[name] = a
			if rapid.IntRange(0, 9).Draw(t, "remove") == 0 {
				given[a], ports[port(a)] = false, false
				delete(hosts, name)
			}
		}
		for len(hosts) < 253 {
			a, err := allocate(subnet, hosts)
			if err != nil {
				t.Fatal(err)
			}
			hosts[fmt.Sprint("more", len(hosts))] = a
		}
		if a, err := allocate(subnet, hosts); err == nil {
			t.Fatalf("%v, though all are taken", a)
		}
	})
	first, err := allocate(subnet, nil)
	if err != nil || first != netip.MustParseAddr("192.168.99.101") || hardwareAddr(first).String() != "02:1e:c0:a8:63:65" || port(first) != "port101" {
		t.Error(first, err, hardwareAddr(first), port(first))
	}
}

func TestHostsFile(t *testing.T) {
	got := string(hostsText([]byte("127.0.0.1 localhost"), map[string]netip.Addr{"b": netip.MustParseAddr("192.0.2.2"), "a": netip.MustParseAddr("192.0.2.1")}))
	if want := "127.0.0.1 localhost\n192.0.2.1\ta\n192.0.2.2\tb\n"; got != want {
		t.Errorf("%q", got)
	}
}

func TestCuts(t *testing.T) {
	hosts := map[string]netip.Addr{}
	for i, n := range []string{"a", "b", "c"} {
		hosts[n] = host(netip.MustParsePrefix("192.168.99.0/24"), byte(firstHost+i))
	}
	cuts := disconnect(nil, "a", []string{"b", "c"})
	cuts = disconnect(cuts, "b", []string{"a"}) // the same again
	if diff := cmp.Diff([]cut{{"a", "b"}, {"a", "c"}}, cuts); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]drop{{"port101", "port102"}, {"port102", "port101"}, {"port101", "port103"}, {"port103", "port101"}}, drops(cuts, hosts)); diff != "" {
		t.Error(diff)
	}
	healed, err := connect(cuts, "c", []string{"a"})
	if diff := cmp.Diff([]cut{{"a", "b"}}, healed); diff != "" || err != nil {
		t.Error(diff, err)
	}
	whole := disconnect(cuts, "b", nil)
	for name, want := range map[string]string{"a": "[b c] false", "b": "[a] true", "c": "[a] false"} {
		if from, all := cutsOf(whole, name); fmt.Sprint(from, all) != want {
			t.Errorf("%s is cut from %v, %v; want %s", name, from, all, want)
		}
	}
	if diff := cmp.Diff([]drop{{In: "port102"}, {Out: "port102"}}, drops(whole[2:], hosts)); diff != "" {
		t.Error(diff)
	}
	for _, pair := range [][2]string{{"b", "c"}, {"c", "b"}} {
		if _, err := connect(whole, pair[0], []string{pair[1]}); err == nil || !strings.Contains(err.Error(), "legion machine connect b") {
			t.Errorf("%v: %v", pair, err)
		}
	}
	if left, err := connect(whole, "b", nil); err != nil || len(left) != 1 || left[0] != (cut{"a", "c"}) {
		t.Errorf("%v, %v", left, err)
	}
	if d := drops([]cut{{"gone", "*"}, {"a", "gone"}}, hosts); len(d) > 0 {
		t.Errorf("rules for machines that are gone: %v", d)
	}
}

// However cuts are made and healed, rules come in pairs, and to connect every
// machine leaves none.
func TestCutsHeal(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		var cuts []cut
		for range rapid.IntRange(0, 20).Draw(t, "steps") {
			one := rapid.SampledFrom(names).Draw(t, "one")
			others := slices.DeleteFunc(rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, "others"), func(s string) bool { return s == one })
			if rapid.Bool().Draw(t, "cut") {
				cuts = disconnect(cuts, one, others)
			} else if healed, err := connect(cuts, one, others); err == nil {
				cuts = healed
			}
			for i, c := range cuts {
				for _, other := range cuts[:i] {
					if c.between(other.A, other.B) {
						t.Fatalf("%v twice in %v", c, cuts)
					}
				}
			}
		}
		for _, n := range names {
			cuts, _ = connect(cuts, n, nil)
		}
		if len(cuts) > 0 {
			t.Fatalf("left: %v", cuts)
		}
	})
}
