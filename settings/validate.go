package settings

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	maxSocketPath  = 107 // sun_path of unix(7), without its end
	minMTU, maxMTU = 68, 65535
	defaultPort    = "2375"
	defaultTLSPort = "2376"
)

// complete fills in what follows from other settings.
func (d *Daemon) complete() {
	if d.TLSVerify {
		d.TLS = true
	}
	if len(d.Hosts) == 0 {
		d.Hosts = []string{"unix://" + DefaultSocket}
	}
	if d.StorageDriver == "overlay2" { // as Docker called it before containerd's store
		d.StorageDriver = "overlayfs"
	}
	if d.StorageDriver == "vfs" {
		d.StorageDriver = "native"
	}
	if d.RaftHeartbeatTick < 0 { // dockerd's way to say: the default
		d.RaftHeartbeatTick = 0
	}
	if d.RaftElectionTick < 0 {
		d.RaftElectionTick = 0
	}
}

// validate returns all faults at once.
func (d *Daemon) validate() error {
	faults := slices.Concat(d.checkPaths(), d.checkWords(), d.checkNumbers(), d.checkHosts(), d.checkLabels(), d.checkNetwork(), d.checkRegistries())
	return errors.Join(faults...)
}

func (d *Daemon) checkPaths() (errs []error) {
	for _, p := range []struct {
		flag, path string
		optional   bool
	}{
		{"data-root", d.DataRoot, false}, {"exec-root", d.ExecRoot, false}, {"pidfile", d.Pidfile, true},
		{"init-path", d.InitPath, true}, {"cgroup-parent", d.CgroupParent, true},
	} {
		if !filepath.IsAbs(p.path) && (p.path != "" || !p.optional) {
			errs = append(errs, fmt.Errorf("invalid %s %q: must be an absolute path", p.flag, p.path))
		}
	}
	if d.DataRoot == d.ExecRoot {
		errs = append(errs, fmt.Errorf("data-root and exec-root are both %s: they must differ", d.DataRoot))
	}
	if d.TLS {
		for _, p := range []struct{ flag, path string }{{"tlscert", d.TLSCert}, {"tlskey", d.TLSKey}} {
			if p.path == "" {
				errs = append(errs, fmt.Errorf("--%s is needed for TLS", p.flag))
			}
		}
	}
	if d.TLSVerify && d.TLSCACert == "" {
		errs = append(errs, errors.New("--tlscacert is needed for --tlsverify"))
	}
	return errs
}

func (d *Daemon) checkWords() (errs []error) {
	for _, w := range []struct {
		name, value string
		good        []string
	}{
		{"log-level", d.LogLevel, []string{"debug", "info", "warn", "error", "fatal"}},
		{"log-format", d.LogFormat, []string{"text", "json"}},
		{"log-driver", d.LogDriver, []string{"json-file", "local", "none"}},
		{"default-ipc-mode", d.DefaultIPCMode, []string{"private", "shareable"}},
		{"default-cgroupns-mode", d.DefaultCgroupns, []string{"", "private", "host"}},
		{"storage-driver", d.StorageDriver, []string{"", "overlayfs", "native"}},
		{"service-balancer", d.ServiceBalancer, []string{"", "ebpf", "nftables"}},
		{"default-runtime", d.only.runtime, []string{"", "runc", "io.containerd.runc.v2"}},
		{"firewall-backend", d.only.firewall, []string{"", "nftables"}},
	} {
		if !slices.Contains(w.good, w.value) {
			good := slices.DeleteFunc(slices.Clone(w.good), func(s string) bool { return s == "" })
			errs = append(errs, fmt.Errorf("invalid %s %q: must be %s", w.name, w.value, strings.Join(good, ", ")))
		}
	}
	for _, o := range d.only.execOpts {
		if o != "native.cgroupdriver=cgroupfs" {
			errs = append(errs, fmt.Errorf("exec-opt %q is not supported by Legion: cgroups are set up directly (native.cgroupdriver=cgroupfs)", o))
		}
	}
	if d.only.selinux {
		errs = append(errs, errors.New("selinux-enabled is not supported by Legion: containers get no SELinux label"))
	}
	if p := d.SeccompProfile; p != "" && p != "builtin" && p != "unconfined" && !filepath.IsAbs(p) {
		errs = append(errs, fmt.Errorf("invalid seccomp-profile %q: must be builtin, unconfined or an absolute path", p))
	}
	return errs
}

func (d *Daemon) checkNumbers() (errs []error) {
	for _, n := range []struct {
		name             string
		value, low, high int
	}{
		{"max concurrent downloads", d.MaxDownloads, 0, 1 << 10},
		{"max concurrent uploads", d.MaxUploads, 0, 1 << 10},
		{"max download attempts", d.MaxDownloadAttempts, 1, 1 << 10},
		{"oom-score-adjust", d.OOMScoreAdjust, -1000, 1000},
		{"shutdown-timeout", d.ShutdownTimeout, -1, 1 << 20},
		{"raft-heartbeat-tick", d.RaftHeartbeatTick, 0, 1 << 10},
		{"raft-election-tick", d.RaftElectionTick, 0, 1 << 10},
	} {
		if n.value < n.low || n.value > n.high {
			errs = append(errs, fmt.Errorf("invalid %s: %d (must be %d to %d)", n.name, n.value, n.low, n.high))
		}
	}
	if h, e := d.RaftHeartbeatTick, d.RaftElectionTick; e != 0 && e <= h {
		errs = append(errs, fmt.Errorf("invalid raft-election-tick: %d must be greater than raft-heartbeat-tick, %d", e, h))
	}
	if d.DefaultShmSize <= 0 {
		errs = append(errs, fmt.Errorf("invalid default-shm-size: %d (must be positive)", d.DefaultShmSize))
	}
	return errs
}

// checkHosts completes and checks the addresses to listen on.
func (d *Daemon) checkHosts() (errs []error) {
	hosts := make([]string, 0, len(d.Hosts))
	for _, h := range d.Hosts {
		full, err := d.checkHost(strings.TrimSpace(h))
		if err == nil && slices.Contains(hosts, full) {
			err = fmt.Errorf("host %s is given twice", full)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hosts = append(hosts, full)
	}
	d.Hosts = hosts
	if d.MetricsAddr != "" {
		if _, _, err := net.SplitHostPort(d.MetricsAddr); err != nil {
			errs = append(errs, fmt.Errorf("invalid metrics-addr %q: want HOST:PORT", d.MetricsAddr))
		}
	}
	return errs
}

func (d *Daemon) checkHost(h string) (string, error) {
	scheme, rest, ok := strings.Cut(h, "://")
	if !ok {
		scheme, rest = "tcp", h // as dockerd reads it
	}
	switch scheme {
	case "unix":
		if rest == "" {
			rest = DefaultSocket
		}
		if !filepath.IsAbs(rest) || len(rest) > maxSocketPath {
			return "", fmt.Errorf("invalid host %q: a socket's path is absolute and has at most %d bytes", h, maxSocketPath)
		}
		return "unix://" + rest, nil
	case "tcp":
		return d.checkTCP(h, rest)
	case "fd":
		return "", fmt.Errorf("invalid host %q: sockets from systemd are not supported; listen on unix:///PATH", h)
	}
	return "", fmt.Errorf("invalid host %q: want unix:///PATH or tcp://HOST:PORT", h)
}

func (d *Daemon) checkTCP(h, rest string) (string, error) {
	port := defaultPort
	if d.TLS {
		port = defaultTLSPort
	}
	switch {
	case rest == "":
		rest = "127.0.0.1:" + port
	case !hasPort(rest):
		rest = net.JoinHostPort(strings.Trim(rest, "[]"), port)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return "", fmt.Errorf("invalid host %q: want tcp://HOST:PORT", h)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", fmt.Errorf("invalid host %q: %q is no port", h, port)
	}
	if strings.ContainsAny(host, "/?#@ ") {
		return "", fmt.Errorf("invalid host %q: want tcp://HOST:PORT", h)
	}
	if !d.TLSVerify && !loopback(host) {
		return "", fmt.Errorf("host %q is open to everybody who reaches it, and so is root on this machine: give --tlsverify with --tlscacert, --tlscert and --tlskey, or listen on 127.0.0.1", h)
	}
	return "tcp://" + net.JoinHostPort(host, port), nil
}

func hasPort(hostport string) bool {
	_, _, err := net.SplitHostPort(hostport)
	return err == nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

func (d *Daemon) checkLabels() (errs []error) {
	values := map[string]string{}
	for _, l := range d.Labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" || v == "" {
			errs = append(errs, fmt.Errorf("bad attribute format: %s (labels are KEY=VALUE)", l))
			continue
		}
		for _, reserved := range []string{"com.docker.", "io.docker.", "org.dockerproject."} {
			if strings.HasPrefix(strings.ToLower(k), reserved) {
				errs = append(errs, fmt.Errorf("label %s is not allowed: the namespaces com.docker.*, io.docker.*, and org.dockerproject.* are reserved for internal use", l))
			}
		}
		if old, ok := values[k]; ok && old != v {
			errs = append(errs, fmt.Errorf("conflict labels for %s=%s and %s=%s", k, v, k, old))
		}
		values[k] = v
	}
	for _, r := range d.NodeGenericResources {
		if k, v, ok := strings.Cut(r, "="); !ok || k == "" || v == "" {
			errs = append(errs, fmt.Errorf("invalid node-generic-resource %q: want KIND=COUNT or KIND=NAME", r))
		}
	}
	return errs
}

func (d *Daemon) checkNetwork() (errs []error) {
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if d.Bridge != "" && (d.BIP.IsValid() || d.BIP6.IsValid()) {
		fail("you specified -b & --bip, mutually exclusive options: please specify only one")
	}
	if d.BIP.IsValid() && !d.BIP.Addr().Is4() {
		fail("invalid bip %s: want an IPv4 address with its subnet's length", d.BIP)
	}
	if d.BIP6.IsValid() && (!d.BIP6.Addr().Is6() || d.BIP6.Addr().Is4In6()) {
		fail("invalid bip6 %s: want an IPv6 address with its subnet's length", d.BIP6)
	}
	if f := d.FixedCIDR; f.IsValid() && (!f.Addr().Is4() || d.BIP.IsValid() && (!d.BIP.Contains(f.Addr()) || f.Bits() < d.BIP.Bits())) {
		fail("invalid fixed-cidr %s: must be an IPv4 subnet inside bip", f)
	}
	if d.MTU != 0 && (d.MTU < minMTU || d.MTU > maxMTU) {
		fail("invalid mtu: %d (must be %d to %d, or 0)", d.MTU, minMTU, maxMTU)
	}
	if !d.ICC && !d.IPTables {
		fail("you specified --iptables=false with --icc=false: ICC=false uses the packet filter to function, please set --icc or --iptables to true")
	}
	for i, p := range d.AddressPools {
		for _, q := range d.AddressPools[:i] {
			if p.Base.Overlaps(q.Base) {
				fail("default-address-pools %s and %s overlap", q.Base, p.Base)
			}
		}
	}
	for _, s := range d.DNSSearch {
		if s != "." && !domain(s) {
			fail("%s is not a valid domain", s)
		}
	}
	return errs
}

// domain accepts names of labels with letters, digits, - and _.
func domain(name string) bool {
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > 255 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.IndexFunc(label, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) >= 0 {
			return false
		}
	}
	return true
}

func (d *Daemon) checkRegistries() (errs []error) {
	for _, m := range d.RegistryMirrors {
		u, err := url.Parse(m)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			errs = append(errs, fmt.Errorf("invalid mirror: %q: want http(s)://HOST[:PORT]", m))
		case u.RawQuery != "" || u.Fragment != "" || u.User != nil:
			errs = append(errs, fmt.Errorf("invalid mirror: %q: must have neither query, fragment nor user", m))
		}
	}
	for _, r := range d.InsecureRegistries {
		if _, err := netip.ParsePrefix(r); err == nil {
			continue
		}
		if r == "" || strings.Contains(r, "://") || strings.ContainsAny(r, "/ ?#@") {
			errs = append(errs, fmt.Errorf("invalid insecure registry %q: want HOST[:PORT] or a CIDR, without a scheme", r))
		}
	}
	for _, p := range []string{d.HTTPProxy, d.HTTPSProxy} {
		if _, err := url.Parse(p); err != nil {
			errs = append(errs, fmt.Errorf("invalid proxy %q: want a URL", p))
		}
	}
	return errs
}
