package settings

import "slices"

// option is one thing that can be configured.
type option struct {
	flag, short string
	key         string // in the file; empty: the flag's name
	usage       string
	bind        func(*Daemon) value
	// note is set for what Legion accepts and has no use for; it says why
	// nothing is lost.
	note string
	// refusal is set for what Legion doesn't do; it says what to do instead.
	refusal string
	// fileOnly options have no flag; flagOnly ones no key.
	fileOnly, flagOnly bool
}

func (o option) fileKey() string {
	if o.key != "" {
		return o.key
	}
	return o.flag
}

// options is everything that dockerd can be told, in the order of its help.
func options() []option {
	return slices.Concat(places(), listening(), logging(), containers(), networking(), registries(), swarm(), checked(), unused(), refused())
}

func places() []option {
	return []option{
		{flag: "data-root", usage: "Root directory of persistent state", bind: func(d *Daemon) value { return text(&d.DataRoot) }},
		{flag: "exec-root", usage: "Root directory for execution state files", bind: func(d *Daemon) value { return text(&d.ExecRoot) }},
		{flag: "pidfile", short: "p", usage: "Path to use for the daemon's PID file", bind: func(d *Daemon) value { return text(&d.Pidfile) }},
		{flag: "containerd", usage: "containerd's socket, to use one that is running (default: one inside the daemon)", bind: func(d *Daemon) value { return text(&d.Containerd) }},
		{flag: "containerd-namespace", usage: "containerd namespace to use", bind: func(d *Daemon) value { return text(&d.ContainerdNamespace) }},
		{flag: "storage-driver", short: "s", usage: "Storage driver: overlayfs or native", bind: func(d *Daemon) value { return text(&d.StorageDriver) }},
		{flag: "cgroup-parent", usage: "Parent cgroup of all containers", bind: func(d *Daemon) value { return text(&d.CgroupParent) }},
		{flag: "oom-score-adjust", usage: "The daemon's oom_score_adj", bind: func(d *Daemon) value { return number(&d.OOMScoreAdjust) }},
		{flag: "shutdown-timeout", usage: "Seconds to finish requests when the daemon ends", bind: func(d *Daemon) value { return number(&d.ShutdownTimeout) }},
		{flag: "live-restore", usage: "Containers keep running while the daemon is down (always so)", bind: func(d *Daemon) value { return boolean(&d.LiveRestore) }},
		{flag: "experimental", usage: "Enable experimental features", bind: func(d *Daemon) value { return boolean(&d.Experimental) }},
	}
}

func listening() []option {
	return []option{
		{flag: "host", short: "H", key: "hosts", usage: "Daemon socket(s) to listen on: unix:///PATH or tcp://HOST:PORT", bind: func(d *Daemon) value { return texts(&d.Hosts) }},
		{flag: "group", short: "G", usage: "Group for the unix socket", bind: func(d *Daemon) value { return text(&d.Group) }},
		{flag: "tls", usage: "Use TLS; implied by --tlsverify", bind: func(d *Daemon) value { return boolean(&d.TLS) }},
		{flag: "tlsverify", usage: "Use TLS and verify the remote", bind: func(d *Daemon) value { return boolean(&d.TLSVerify) }},
		{flag: "tlscacert", usage: "Trust certs signed only by this CA", bind: func(d *Daemon) value { return text(&d.TLSCACert) }},
		{flag: "tlscert", usage: "Path to TLS certificate file", bind: func(d *Daemon) value { return text(&d.TLSCert) }},
		{flag: "tlskey", usage: "Path to TLS key file", bind: func(d *Daemon) value { return text(&d.TLSKey) }},
		{flag: "metrics-addr", usage: "Address and port to serve the metrics API on", bind: func(d *Daemon) value { return text(&d.MetricsAddr) }},
	}
}

func logging() []option {
	return []option{
		{flag: "debug", short: "D", usage: "Enable debug mode", bind: func(d *Daemon) value { return boolean(&d.Debug) }},
		{flag: "log-level", short: "l", usage: "Logging level: debug, info, warn, error, fatal", bind: func(d *Daemon) value { return text(&d.LogLevel) }},
		{flag: "log-format", usage: "Logging format: text, json", bind: func(d *Daemon) value { return text(&d.LogFormat) }},
		{flag: "log-driver", usage: "Default driver for container logs: json-file, local, none", bind: func(d *Daemon) value { return text(&d.LogDriver) }},
		{flag: "log-opt", key: "log-opts", usage: "Default log driver options for containers", bind: func(d *Daemon) value { return &pairs{p: &d.LogOpts} }},
	}
}

func containers() []option {
	return []option{
		{flag: "init", usage: "Run an init in the container to forward signals and reap processes", bind: func(d *Daemon) value { return boolean(&d.Init) }},
		{flag: "init-path", usage: "Path to the init binary", bind: func(d *Daemon) value { return text(&d.InitPath) }},
		{flag: "default-ulimit", key: "default-ulimits", usage: "Default ulimits for containers", bind: func(d *Daemon) value { return &ulimits{p: &d.DefaultUlimits} }},
		{flag: "default-shm-size", usage: "Default shm size for containers", bind: func(d *Daemon) value { return size(&d.DefaultShmSize) }},
		{flag: "default-ipc-mode", usage: "Default mode for containers' IPC: shareable or private", bind: func(d *Daemon) value { return text(&d.DefaultIPCMode) }},
		{flag: "default-cgroupns-mode", usage: "Default mode for containers' cgroup namespace: host or private", bind: func(d *Daemon) value { return text(&d.DefaultCgroupns) }},
		{flag: "no-new-privileges", usage: "Set no-new-privileges by default for new containers", bind: func(d *Daemon) value { return boolean(&d.NoNewPrivileges) }},
		{flag: "seccomp-profile", usage: "Path to a seccomp profile, builtin or unconfined", bind: func(d *Daemon) value { return text(&d.SeccompProfile) }},
		{flag: "label", key: "labels", usage: "Set key=value labels to the daemon", bind: func(d *Daemon) value { return texts(&d.Labels) }},
		{flag: "node-generic-resource", key: "node-generic-resources", usage: "Advertise user-defined resource", bind: func(d *Daemon) value { return texts(&d.NodeGenericResources) }},
	}
}

func networking() []option {
	return []option{
		{flag: "bridge", short: "b", usage: "Attach containers to a bridge that is there; none: no default network", bind: func(d *Daemon) value { return text(&d.Bridge) }},
		{flag: "bip", usage: "IPv4 address and subnet of the default bridge", bind: func(d *Daemon) value { return prefix(&d.BIP) }},
		{flag: "bip6", usage: "IPv6 address and subnet of the default bridge", bind: func(d *Daemon) value { return prefix(&d.BIP6) }},
		{flag: "fixed-cidr", usage: "IPv4 subnet of the default bridge's addresses", bind: func(d *Daemon) value { return prefix(&d.FixedCIDR) }},
		{flag: "mtu", usage: "MTU of the default bridge (0: the default route's)", bind: func(d *Daemon) value { return number(&d.MTU) }},
		{flag: "icc", usage: "Let containers on the default bridge talk to each other", bind: func(d *Daemon) value { return boolean(&d.ICC) }},
		{flag: "ip", usage: "Host IP for port publishing from the default bridge", bind: func(d *Daemon) value { return address(&d.HostIP) }},
		{flag: "ip-masq", usage: "Masquerade containers' addresses", bind: func(d *Daemon) value { return boolean(&d.IPMasq) }},
		{flag: "allow-direct-routing", usage: "Let hosts that have a route reach published ports at containers' addresses", bind: func(d *Daemon) value { return boolean(&d.DirectRouting) }},
		{flag: "ip-forward", usage: "Enable IP forwarding in the kernel", bind: func(d *Daemon) value { return boolean(&d.IPForward) }},
		{flag: "iptables", usage: "Set IPv4 packet filter rules (nftables)", bind: func(d *Daemon) value { return boolean(&d.IPTables) }},
		{flag: "ip6tables", usage: "Set IPv6 packet filter rules (nftables)", bind: func(d *Daemon) value { return boolean(&d.IP6Tables) }},
		{flag: "userland-proxy", usage: "Relay connections from this host to published ports", bind: func(d *Daemon) value { return boolean(&d.UserlandProxy) }},
		{flag: "service-balancer", usage: "How service addresses lead to tasks: ebpf or nftables (default: ebpf where the host has it)", bind: func(d *Daemon) value { return text(&d.ServiceBalancer) }},
		{flag: "default-address-pool", key: "default-address-pools", usage: "Default address pools for node specific local networks", bind: func(d *Daemon) value { return addressPools(&d.AddressPools) }},
		{flag: "host-gateway-ip", key: "host-gateway-ips", usage: "IP address that the name host-gateway means", bind: func(d *Daemon) value { return addresses(&d.HostGatewayIPs) }},
		{flag: "dns", usage: "DNS server to use", bind: func(d *Daemon) value { return addresses(&d.DNS) }},
		{flag: "dns-opt", key: "dns-opts", usage: "DNS options to use", bind: func(d *Daemon) value { return texts(&d.DNSOpts) }},
		{flag: "dns-search", usage: "DNS search domains to use", bind: func(d *Daemon) value { return texts(&d.DNSSearch) }},
	}
}

func registries() []option {
	return []option{
		{flag: "registry-mirror", key: "registry-mirrors", usage: "Preferred registry mirror", bind: func(d *Daemon) value { return texts(&d.RegistryMirrors) }},
		{flag: "insecure-registry", key: "insecure-registries", usage: "Enable insecure registry communication", bind: func(d *Daemon) value { return texts(&d.InsecureRegistries) }},
		{flag: "max-concurrent-downloads", usage: "Layers downloaded at a time for each pull", bind: func(d *Daemon) value { return number(&d.MaxDownloads) }},
		{flag: "max-concurrent-uploads", usage: "Layers uploaded at a time for each push", bind: func(d *Daemon) value { return number(&d.MaxUploads) }},
		{flag: "max-download-attempts", usage: "Download attempts for each layer", bind: func(d *Daemon) value { return number(&d.MaxDownloadAttempts) }},
		{flag: "http-proxy", usage: "HTTP proxy URL to use for outgoing traffic", bind: func(d *Daemon) value { return text(&d.HTTPProxy) }},
		{flag: "https-proxy", usage: "HTTPS proxy URL to use for outgoing traffic", bind: func(d *Daemon) value { return text(&d.HTTPSProxy) }},
		{flag: "no-proxy", usage: "Comma-separated hosts not to use the proxy for", bind: func(d *Daemon) value { return text(&d.NoProxy) }},
	}
}

func swarm() []option {
	return []option{
		{flag: "swarm-default-advertise-addr", usage: "Default address or interface for the swarm's advertised address", bind: func(d *Daemon) value { return text(&d.SwarmAdvertiseAddr) }},
		{flag: "raft-heartbeat-tick", usage: "Ticks between a leader's heartbeats (0: the swarm's)", bind: func(d *Daemon) value { return number(&d.RaftHeartbeatTick) }},
		{flag: "raft-election-tick", usage: "Ticks without a leader before an election (0: the swarm's)", bind: func(d *Daemon) value { return number(&d.RaftElectionTick) }},
	}
}

// checked are options of which Legion knows one value; see validate.
func checked() []option {
	return []option{
		{flag: "default-runtime", usage: "Default OCI runtime: runc", bind: func(d *Daemon) value { return text(&d.only.runtime) }},
		{flag: "exec-opt", key: "exec-opts", usage: "Runtime execution options: native.cgroupdriver=cgroupfs", bind: func(d *Daemon) value { return texts(&d.only.execOpts) }},
		{flag: "firewall-backend", usage: "Firewall backend: nftables", bind: func(d *Daemon) value { return text(&d.only.firewall) }},
		{flag: "selinux-enabled", usage: "Enable selinux support (not served)", bind: func(d *Daemon) value { return boolean(&d.only.selinux) }},
	}
}

// Places for what is read and not used.
func noText(*Daemon) value   { return text(new(string)) }
func noTexts(*Daemon) value  { return texts(new([]string)) }
func noBool(*Daemon) value   { return boolean(new(bool)) }
func noNumber(*Daemon) value { return number(new(int)) }

// unused is what Legion can leave alone without harm.
func unused() []option {
	const noPlugins = "there are no engine plugins to keep apart"
	return []option{
		{flag: "userland-proxy-path", usage: "Path to the userland proxy binary", bind: noText, note: "the relay is part of the daemon"},
		{flag: "containerd-plugins-namespace", usage: "containerd namespace for plugins", bind: noText, note: noPlugins},
		{flag: "plugins-namespace", usage: "containerd namespace for plugins", bind: noText, note: noPlugins, fileOnly: true},
		{flag: "network-control-plane-mtu", usage: "Network control plane MTU", bind: noNumber, note: "the data plane has no gossip; its state travels over TCP"},
		{flag: "ip-forward-no-drop", usage: "Do not set the filter-FORWARD policy to DROP", bind: noBool, note: "that policy is never touched"},
		{flag: "features", usage: "Engine features", bind: func(*Daemon) value { return anything{} }, note: "images are always in containerd's store", fileOnly: true},
		{flag: "builder", usage: "Builder options", bind: func(*Daemon) value { return anything{} }, note: "the daemon builds no images", fileOnly: true},
		{flag: "cdi-spec-dirs", usage: "CDI specification directories", bind: noTexts, note: "devices are not handed out by CDI", fileOnly: true},
		{flag: "deprecated-key-path", usage: "Path of an old engine's key", bind: noText, note: "nothing uses that key any more", fileOnly: true},
	}
}

// refused is what would silently mean something else if it were accepted.
func refused() []option {
	return []option{
		{flag: "add-runtime", key: "runtimes", usage: "Register an additional OCI runtime", bind: func(*Daemon) value { return anything{} }, refusal: "runc, which travels with Legion, is the only runtime"},
		{flag: "authorization-plugin", key: "authorization-plugins", usage: "Authorization plugins to load", bind: noTexts, refusal: "protect the socket by its file mode or by --tlsverify"},
		{flag: "userns-remap", usage: "User/Group setting for user namespaces", bind: noText, refusal: "containers run in the host's user namespace"},
		{flag: "rootless", usage: "Enable rootless mode", bind: noBool, refusal: "the daemon needs root"},
		{flag: "storage-opt", key: "storage-opts", usage: "Storage driver options", bind: noTexts, refusal: "the storage drivers have no options"},
		{flag: "ipv6", usage: "Enable IPv6 on the default bridge", bind: noBool, refusal: "give the default bridge an IPv6 subnet with --bip6"},
		{flag: "fixed-cidr-v6", usage: "IPv6 subnet of the default bridge's addresses", bind: noText, refusal: "give the default bridge an IPv6 subnet with --bip6"},
		{flag: "default-gateway", usage: "Default gateway of the default bridge", bind: noText, refusal: "the bridge's own address is the gateway"},
		{flag: "default-gateway-v6", usage: "IPv6 default gateway of the default bridge", bind: noText, refusal: "the bridge's own address is the gateway"},
		{flag: "bridge-accept-fwmark", usage: "Accept packets with this firewall mark", bind: noText, refusal: "publish the port instead"},
		{flag: "default-network-opt", key: "default-network-opts", usage: "Default network options", bind: func(*Daemon) value { return anything{} }, refusal: "give the options to docker network create"},
		{flag: "cpu-rt-period", usage: "CPU real-time period of the parent cgroup", bind: noNumber, refusal: "real-time scheduling of cgroups is not set"},
		{flag: "cpu-rt-runtime", usage: "CPU real-time runtime of the parent cgroup", bind: noNumber, refusal: "real-time scheduling of cgroups is not set"},
	}
}
