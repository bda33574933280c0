package settings

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/legion-swarm/legion/api"
)

// load is what the command does: flags, then a file.
func load(file string, args ...string) (*Daemon, []string, error) {
	fs := pflag.NewFlagSet("daemon", pflag.ContinueOnError)
	s := NewSource(fs)
	if err := fs.Parse(args); err != nil {
		return nil, nil, err
	}
	return s.Daemon([]byte(file))
}

func TestDefaults(t *testing.T) {
	for _, file := range []string{"", " \n", "{}", `{"debug":null}`, "\xef\xbb\xbf{}"} {
		d, notes, err := load(file)
		if err != nil || len(notes) > 0 {
			t.Fatalf("%q: %v, %v", file, notes, err)
		}
		if !slices.Equal(d.Hosts, []string{"unix:///run/legion/legion.sock"}) || d.DataRoot != "/var/lib/legion" || d.ExecRoot != "/run/legion" ||
			d.Pidfile != "/run/legion/legion.pid" || d.LogDriver != "json-file" || !d.IPTables || d.Debug || d.GroupSet {
			t.Errorf("%q: %+v", file, d)
		}
	}
}

// A flag and its key in the file mean the same.
func TestFlagsAndFileAgree(t *testing.T) {
	for _, c := range []struct {
		args []string
		file string
		got  func(*Daemon) any
		want any
	}{
		{[]string{"-D"}, `{"debug":true}`, func(d *Daemon) any { return d.Debug }, true},
		{[]string{"--iptables=false"}, `{"iptables":false}`, func(d *Daemon) any { return d.IPTables }, false},
		{[]string{"--mtu", "1400"}, `{"mtu":1400}`, func(d *Daemon) any { return d.MTU }, 1400},
		{[]string{"--default-shm-size", "128M"}, `{"default-shm-size":"128M"}`, func(d *Daemon) any { return d.DefaultShmSize }, int64(128 << 20)},
		{[]string{"--default-shm-size", "1048576"}, `{"default-shm-size":1048576}`, func(d *Daemon) any { return d.DefaultShmSize }, int64(1 << 20)},
		{[]string{"-H", "unix:///a", "-H", "tcp://127.0.0.1"}, `{"hosts":["unix:///a","tcp://127.0.0.1"]}`, func(d *Daemon) any { return strings.Join(d.Hosts, " ") }, "unix:///a tcp://127.0.0.1:2375"},
		{[]string{"-H", "localhost:1"}, `{"hosts":["tcp://localhost:1"]}`, func(d *Daemon) any { return d.Hosts[0] }, "tcp://localhost:1"},
		{[]string{"-H", "tcp://[::1]:1"}, `{"hosts":["tcp://[::1]:1"]}`, func(d *Daemon) any { return d.Hosts[0] }, "tcp://[::1]:1"},
		{[]string{"-H", "unix://"}, `{"hosts":["unix://"]}`, func(d *Daemon) any { return d.Hosts[0] }, "unix:///run/legion/legion.sock"},
		{[]string{"--tlsverify", "-H", "tcp://0.0.0.0"}, `{"tlsverify":true,"hosts":["tcp://0.0.0.0"]}`, func(d *Daemon) any { return d.Hosts[0] }, "tcp://0.0.0.0:2376"},
		{[]string{"--label", "a=b", "--label", "c=d"}, `{"labels":["a=b","c=d"]}`, func(d *Daemon) any { return strings.Join(d.Labels, " ") }, "a=b c=d"},
		{[]string{"--log-opt", "max-size=1m"}, `{"log-opts":{"max-size":"1m"}}`, func(d *Daemon) any { return d.LogOpts["max-size"] }, "1m"},
		{[]string{"--default-ulimit", "nofile=1:2"}, `{"default-ulimits":{"nofile":{"Name":"nofile","Soft":1,"Hard":2}}}`, func(d *Daemon) any { return d.DefaultUlimits["nofile"].String() }, "nofile=1:2"},
		{[]string{"--default-address-pool", "base=10.0.0.0/8,size=24"}, `{"default-address-pools":[{"base":"10.0.0.0/8","size":24}]}`, func(d *Daemon) any { return d.AddressPools[0].Base.String() }, "10.0.0.0/8"},
		{[]string{"--bip", "10.1.2.3/24"}, `{"bip":"10.1.2.3/24"}`, func(d *Daemon) any { return d.BIP.String() }, "10.1.2.3/24"},
		{[]string{"--dns", "10.0.0.1"}, `{"dns":["10.0.0.1"]}`, func(d *Daemon) any { return d.DNS[0].String() }, "10.0.0.1"},
		{[]string{"--http-proxy", "http://p:1"}, `{"proxies":{"http-proxy":"http://p:1"}}`, func(d *Daemon) any { return d.HTTPProxy }, "http://p:1"},
		{[]string{"-s", "overlay2"}, `{"storage-driver":"overlay2"}`, func(d *Daemon) any { return d.StorageDriver }, "overlayfs"},
		{[]string{"-G", "root"}, `{"group":"root"}`, func(d *Daemon) any { return d.GroupSet }, true},
		{[]string{"--pidfile="}, `{"pidfile":""}`, func(d *Daemon) any { return d.Pidfile }, ""},
		{[]string{"--raft-election-tick", "20"}, `{"raft-election-tick":20}`, func(d *Daemon) any { return d.RaftElectionTick }, 20},
	} {
		byFlag, _, err := load("", c.args...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		byFile, _, err := load(c.file)
		if err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if a, b := c.got(byFlag), c.got(byFile); a != c.want || b != c.want {
			t.Errorf("%q: %v, %s: %v, want %v", c.args, a, c.file, b, c.want)
		}
	}
}

// What is wrong is refused with its name.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		file string
		args []string
		says string
	}{
		{`{"b":1,"a":2}`, nil, "the following directives don't match any configuration option: a, b"},
		{`{"labels":["x=2"],"debug":true}`, []string{"--label", "x=1", "-D"}, `the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true), labels: (from flag: [x=1], from file: ["x=2"])`},
		{"{\n\"debug\": tru", nil, "(line 2)"},
		{`[]`, nil, "not a JSON object"},
		{`{} {}`, nil, "follows"},
		{`{"debug":"true"}`, nil, `"debug": want true or false, not "true"`},
		{`{"mtu":"1400"}`, nil, `"mtu": want a whole number`},
		{`{"mtu":1.5}`, nil, `"mtu": want a whole number`},
		{`{"labels":"a=b"}`, nil, `"labels": want a list of texts`},
		{`{"bip":"10.0.0.1"}`, nil, `"bip": want an address with its subnet's length`},
		{`{"default-ulimits":{"nofile":null}}`, nil, `no limits for "nofile"`},
		{`{"default-ulimits":{"nothing":{"Soft":1,"Hard":1}}}`, nil, "nothing"},
		{`{"runtimes":{"x":{}}}`, nil, `"runtimes" is not supported by Legion`},
		{``, []string{"--userns-remap", "x"}, "--userns-remap is not supported by Legion"},
		{``, []string{"--exec-opt", "native.cgroupdriver=systemd"}, "native.cgroupdriver=systemd"},
		{``, []string{"-H", "tcp://0.0.0.0:2375"}, "--tlsverify"},
		{``, []string{"--tls", "-H", "tcp://10.0.0.1"}, "--tlsverify"},
		{``, []string{"-H", "tcp://127.0.0.1:99999"}, "99999"},
		{``, []string{"-H", "fd://"}, "systemd"},
		{``, []string{"-H", "npipe://x"}, "npipe"},
		{``, []string{"-H", "unix://relative"}, "absolute"},
		{``, []string{"-H", "unix:///" + strings.Repeat("x", 120)}, "107"},
		{``, []string{"-H", "unix:///a", "-H", "unix:///a"}, "twice"},
		{``, []string{"--data-root", "data"}, "data-root"},
		{``, []string{"--data-root", "/x", "--exec-root", "/x"}, "must differ"},
		{``, []string{"--log-level", "loud"}, `invalid log-level "loud": must be debug, info, warn, error, fatal`},
		{``, []string{"--log-driver", "syslog"}, "log-driver"},
		{``, []string{"--label", "x"}, "bad attribute format: x"},
		{``, []string{"--label", "com.docker.x=1"}, "reserved for internal use"},
		{``, []string{"--label", "a=1", "--label", "a=2"}, "conflict labels for a=2 and a=1"},
		{``, []string{"--bip", "10.0.0.1/24", "--bridge", "br0"}, "mutually exclusive"},
		{``, []string{"--bip", "fd00::1/64"}, "IPv4"},
		{``, []string{"--fixed-cidr", "10.2.0.0/24", "--bip", "10.0.0.1/24"}, "fixed-cidr"},
		{``, []string{"--icc=false", "--iptables=false"}, "--icc"},
		{``, []string{"--default-address-pool", "base=10.0.0.0/8,size=24", "--default-address-pool", "base=10.1.0.0/16,size=24"}, "overlap"},
		{``, []string{"--default-address-pool", "base=10.0.0.0/24,size=8"}, "base=CIDR,size=LENGTH"},
		{``, []string{"--mtu", "7"}, "invalid mtu: 7"},
		{``, []string{"--dns", "x"}, "an IP address"},
		{``, []string{"--dns-search", "a b"}, "a b is not a valid domain"},
		{``, []string{"--registry-mirror", "ftp://x"}, "invalid mirror"},
		{``, []string{"--insecure-registry", "http://x"}, "invalid insecure registry"},
		{``, []string{"--max-concurrent-downloads", "-1"}, "invalid max concurrent downloads: -1"},
		{``, []string{"--max-download-attempts", "0"}, "invalid max download attempts: 0"},
		{``, []string{"--default-shm-size", "0"}, "invalid default-shm-size"},
		{``, []string{"--raft-heartbeat-tick", "5", "--raft-election-tick", "5"}, "raft-election-tick"},
		{``, []string{"--metrics-addr", "9323"}, "metrics-addr"},
		{``, []string{"--storage-driver", "zfs"}, "storage-driver"},
		{``, []string{"--seccomp-profile", "relative.json"}, "seccomp-profile"},
	} {
		_, _, err := load(c.file, c.args...)
		if err == nil {
			t.Errorf("%s %q is accepted", c.file, c.args)
			continue
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %q: no %q in: %v", c.file, c.args, c.says, err)
		}
	}
	if _, _, err := load(`{"mtu":7}`); !api.Is(err, api.Invalid) {
		t.Errorf("class of %v", err)
	}
	if _, _, err := load(strings.Repeat(" ", maxFile+1)); err == nil {
		t.Error("a huge file is accepted")
	}
}

// What does nothing says so.
func TestNotes(t *testing.T) {
	_, notes, err := load(`{"features":{"x":true}}`, "--network-control-plane-mtu", "1400", "--live-restore=false")
	if err != nil || len(notes) != 3 {
		t.Fatalf("%q, %v", notes, err)
	}
	for i, says := range []string{"--network-control-plane-mtu has no effect", `"features" has no effect`, "live-restore"} {
		if !strings.Contains(notes[i], says) {
			t.Errorf("note %q: want %q", notes[i], says)
		}
	}
}

// The same flags with one file after another: nothing of the last file stays.
func TestReload(t *testing.T) {
	fs := pflag.NewFlagSet("daemon", pflag.ContinueOnError)
	s := NewSource(fs)
	if err := fs.Parse([]string{"--label", "flag=1"}); err != nil {
		t.Fatal(err)
	}
	first, _, err := s.Daemon([]byte(`{"debug":true,"log-opts":{"max-size":"1m"},"dns":["10.0.0.1"]}`))
	if err != nil || !first.Debug || first.LogOpts["max-size"] != "1m" || len(first.DNS) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	second, _, err := s.Daemon(nil)
	if err != nil || second.Debug || len(second.LogOpts) > 0 || len(second.DNS) > 0 || !slices.Equal(second.Labels, []string{"flag=1"}) {
		t.Errorf("%+v, %v", second, err)
	}
}

func TestOptionsAreUnique(t *testing.T) {
	flags, keys := map[string]bool{}, map[string]bool{}
	for _, o := range options() {
		if flags[o.flag] || keys[o.fileKey()] {
			t.Errorf("%s, %s: twice", o.flag, o.fileKey())
		}
		flags[o.flag], keys[o.fileKey()] = true, true
		if o.usage == "" || o.note != "" && o.refusal != "" {
			t.Errorf("%s: no usage, or both note and refusal", o.flag)
		}
	}
}

// No file makes it panic, and what it accepts is valid.
func FuzzFile(f *testing.F) {
	for _, s := range []string{`{}`, `{"hosts":["tcp://[::1]"],"labels":["a=b"]}`, `{"default-ulimits":{"nofile":{"Name":"nofile","Soft":1,"Hard":2}}}`,
		`{"default-address-pools":[{"base":"10.0.0.0/8","size":24}]}`, `{"proxies":{"http-proxy":"x"}}`, `{"bip":"::/0","default-shm-size":"1e3"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		d, _, err := load(string(file))
		if err == nil && d.validate() != nil {
			t.Error(d.validate())
		}
	})
}
