package network

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/legion-swarm/legion/api"
)

// Options are for New.
type Options struct {
	// Dataplane makes the network. Required.
	Dataplane Dataplane
	// Dir keeps the networks that users made, across reboots
	// (<data-root>/network). Required.
	Dir string
	// RuntimeDir keeps what is known of containers' endpoints, across restarts of
	// the daemon (<exec-root>/network). Required.
	RuntimeDir string
	// Log is required.
	Log *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time

	// Bridge is the device of the network "bridge"; empty: legion0, or the next
	// free number if another node on this host has that. One that exists and is
	// not ours is used as it is (--bridge).
	Bridge string
	// BIP is the default bridge's address and subnet; zero: the first free subnet
	// of Pools (--bip). BIP6 turns IPv6 on for the default bridge (--bip6).
	BIP, BIP6 netip.Prefix
	// FixedCIDR limits the addresses that containers get on it (--fixed-cidr).
	FixedCIDR netip.Prefix
	// NoBridge: there is no network "bridge" (--bridge none).
	NoBridge bool
	// MTU of bridges; 0: that of the default route's device, else 1500 (--mtu).
	MTU int
	// NoICC keeps containers on the default bridge from talking to each other.
	NoICC bool
	// NoMasquerade leaves addresses as they are (--ip-masq=false).
	NoMasquerade bool
	// DirectRouting has published ports of all bridges reached at containers' own addresses,
	// too (--allow-direct-routing).
	DirectRouting bool
	// HostIP is where ports of the default bridge are published that name no address; zero: all
	// addresses (--ip).
	HostIP netip.Addr
	// Pools that subnets are cut from; empty: DefaultPools.
	Pools []AddressPool

	// NoRules4 and NoRules6 forbid packet filter rules (--iptables=false,
	// --ip6tables=false).
	NoRules4, NoRules6 bool
	// NoForward leaves the kernel's forwarding switch alone (--ip-forward=false).
	NoForward bool
	// NoUserProxy has no connection relayed by the daemon (--userland-proxy=false).
	NoUserProxy bool

	// DNS servers that containers' queries for other names go to; empty: those of
	// ResolvConf, which is read again when it changes (--dns).
	DNS []netip.Addr
	// ResolvConf is the host's; empty: /etc/resolv.conf.
	ResolvConf string

	// SetTimeout bounds one change of the data plane; 0: 30 s.
	SetTimeout time.Duration
}

const (
	defaultSetTimeout = 30 * time.Second
	defaultMTU        = 1500
	minMTU, maxMTU    = 68, 65535 // RFC 791; what a bridge takes
	minMTU6           = 1280      // RFC 8200: a smaller device has no IPv6
)

func (o *Options) validate() error {
	switch {
	case o.Dataplane == nil || o.Log == nil:
		return api.Errorf(api.Invalid, "network: Dataplane and Log are required")
	case !filepath.IsAbs(o.Dir) || !filepath.IsAbs(o.RuntimeDir):
		return api.Errorf(api.Invalid, "network: folders %q and %q must be absolute paths", o.Dir, o.RuntimeDir)
	case o.MTU != 0 && (o.MTU < minMTU || o.MTU > maxMTU):
		return api.Errorf(api.Invalid, "mtu %d: must be %d to %d", o.MTU, minMTU, maxMTU)
	case o.Bridge != "" && o.NoBridge:
		return api.Errorf(api.Invalid, "bridge %q is named and switched off", o.Bridge)
	case o.Bridge != "" && o.BIP.IsValid() && !validDevice(o.Bridge):
		return api.Errorf(api.Invalid, "bridge %q: not a name for a device", o.Bridge)
	case o.BIP.IsValid() && !o.BIP.Addr().Is4():
		return api.Errorf(api.Invalid, "bip %s: must be an IPv4 address with its subnet's length", o.BIP)
	case o.BIP6.IsValid() && !o.BIP6.Addr().Is6():
		return api.Errorf(api.Invalid, "bip6 %s: must be an IPv6 address with its subnet's length", o.BIP6)
	case o.FixedCIDR.IsValid() && o.BIP.IsValid() && !within(o.FixedCIDR, o.BIP):
		return api.Errorf(api.Invalid, "fixed-cidr %s is not inside the default bridge's subnet %s", o.FixedCIDR, o.BIP.Masked())
	}
	if err := validateDNS(o.DNS); err != nil {
		return err
	}
	return validatePools(o.Pools)
}

// within reports whether all of a is in b.
func within(a, b netip.Prefix) bool { return b.Contains(a.Addr()) && a.Bits() >= b.Bits() }

func (o Options) withDefaults() Options {
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Pools) == 0 {
		o.Pools = DefaultPools()
	}
	if o.ResolvConf == "" {
		o.ResolvConf = hostResolv
	}
	if o.SetTimeout == 0 {
		o.SetTimeout = defaultSetTimeout
	}
	return o
}
