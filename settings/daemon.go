package settings

import (
	"net/netip"

	"github.com/docker/go-units"
)

// What a daemon uses when it is told nothing.
const (
	DefaultDataRoot   = "/var/lib/legion"
	DefaultExecRoot   = "/run/legion"
	DefaultSocket     = "/run/legion/legion.sock"
	DefaultPidfile    = "/run/legion/legion.pid"
	DefaultConfigFile = "/etc/legion/daemon.json"
	defaultCertDir    = "/etc/legion/"
	defaultShmSize    = 64 << 20
)

// Daemon is one node's configuration. The field comments name the flag where
// it is not obvious; meanings are dockerd's. A Daemon from Source.Daemon is
// valid and is not changed afterwards.
type Daemon struct {
	// DataRoot outlives a reboot, ExecRoot need not. Absolute.
	DataRoot, ExecRoot string
	// Pidfile is empty when none is wanted.
	Pidfile string
	// Hosts to listen on: unix:///path or tcp://host:port. At least one.
	Hosts []string
	// Group that owns the unix sockets; GroupSet when the user named it, so that
	// its absence is an error.
	Group    string
	GroupSet bool
	// TLS on tcp hosts; TLSVerify asks clients for a certificate of TLSCACert.
	TLS, TLSVerify             bool
	TLSCACert, TLSCert, TLSKey string

	// Containerd is the socket of a containerd that is already there; empty: one
	// inside the daemon.
	Containerd          string
	ContainerdNamespace string // empty: Legion's own
	StorageDriver       string // "", "overlayfs" or "native"
	CgroupParent        string // empty: Legion's own

	Debug     bool
	LogLevel  string // debug, info, warn, error or fatal
	LogFormat string // text or json

	// Defaults for containers.
	LogDriver       string // json-file, local or none
	LogOpts         map[string]string
	Init            bool
	InitPath        string // empty: the init that travels with Legion
	DefaultUlimits  map[string]*units.Ulimit
	DefaultShmSize  int64 // bytes
	DefaultIPCMode  string
	DefaultCgroupns string // empty, private or host
	NoNewPrivileges bool
	SeccompProfile  string // empty or builtin, unconfined, or an absolute path
	OOMScoreAdjust  int    // of the daemon itself

	// Labels of the node: key=value.
	Labels []string
	// NodeGenericResources as key=value, for services' reservations.
	NodeGenericResources []string

	// The default bridge and the packet filter.
	Bridge              string // empty: Legion makes one; "none": no default network
	BIP, BIP6           netip.Prefix
	FixedCIDR           netip.Prefix
	MTU                 int // 0: the default route's
	ICC                 bool
	HostIP              netip.Addr // --ip; zero: all addresses
	IPMasq, IPForward   bool
	IPTables, IP6Tables bool
	DirectRouting       bool // --allow-direct-routing
	UserlandProxy       bool
	ServiceBalancer     string // "ebpf" or "nftables"; empty: what the host has
	AddressPools        []AddressPool
	HostGatewayIPs      []netip.Addr
	DNS                 []netip.Addr
	DNSOpts, DNSSearch  []string

	RegistryMirrors     []string // URLs
	InsecureRegistries  []string // host[:port] or CIDR
	MaxDownloads        int      // layers at a time, per pull
	MaxUploads          int
	MaxDownloadAttempts int
	HTTPProxy           string
	HTTPSProxy, NoProxy string
	SwarmAdvertiseAddr  string // --swarm-default-advertise-addr
	RaftHeartbeatTick   int    // ticks; 0: Docker's default
	RaftElectionTick    int
	MetricsAddr         string // host:port; empty: no metrics
	ShutdownTimeout     int    // seconds to finish requests; negative: for ever
	LiveRestore         bool   // containers always outlive the daemon
	Experimental        bool

	// only holds options that have one good value here.
	only struct {
		runtime, firewall string
		execOpts          []string
		selinux           bool
	}
}

// AddressPool is a block of addresses that networks' subnets are cut from.
type AddressPool struct {
	Base netip.Prefix
	Size int // prefix length of each subnet
}

func defaults() Daemon {
	return Daemon{
		DataRoot: DefaultDataRoot, ExecRoot: DefaultExecRoot, Pidfile: DefaultPidfile, Group: "docker",
		TLSCACert: defaultCertDir + "ca.pem", TLSCert: defaultCertDir + "cert.pem", TLSKey: defaultCertDir + "key.pem",
		LogLevel: "info", LogFormat: "text", LogDriver: "json-file",
		DefaultShmSize: defaultShmSize, DefaultIPCMode: "private", SeccompProfile: "builtin",
		ICC: true, IPMasq: true, IPForward: true, IPTables: true, IP6Tables: true, UserlandProxy: true,
		MaxDownloads: 3, MaxUploads: 5, MaxDownloadAttempts: 5, ShutdownTimeout: 15, LiveRestore: true,
	}
}
