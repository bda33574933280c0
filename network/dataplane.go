package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Dataplane makes a node's network. Package network/linux has the real one,
// package networktest one in memory; both pass networktest.Dataplane.
//
// Calls of Set are made one after the other, and so are those of Narrow; everything
// else may be called at any time from any goroutine.
type Dataplane interface {
	// Set makes the data plane what c says, touching only what differs, and
	// removes what it made before and c doesn't have. It does all it can: what
	// failed is in the *SetError it returns, and is tried again by the next Set,
	// with what is pending removal. An error of another type means that nothing
	// was done.
	Set(ctx context.Context, c *Config) error
	// Narrow takes back at once, also while a Set is under way, what c lacks of names
	// and their addresses, and of the backends of balancers and ports of the mesh.
	// No Set puts back what the last narrowed config lacks; what is new in that one
	// comes with the next Set. Who calls it does so with every config before that is
	// set, in order. What can't be taken back at once is left to the next Set.
	Narrow(c *Config)
	// Watch calls changed when what is there may no longer be what was last set;
	// the next Set then looks at what is really there. It blocks until ctx ends
	// or the data plane can't be watched.
	Watch(ctx context.Context, changed func()) error
	// Host looks at the node's own network.
	Host(ctx context.Context) (*Host, error)
	// Counters returns what a sandbox's interfaces have carried; NotFound for a
	// sandbox that was not set.
	Counters(ctx context.Context, sandbox string) ([]Counters, error)
	// Path of the file that a sandbox's namespace is (or would be) bound to.
	Path(sandbox string) string
}

// Resumer is what a Dataplane may be besides: one that takes up some of its work
// before the first Set, which may take long or wait for others.
type Resumer interface {
	// Resume has names answered in those of the config's sandboxes that an earlier
	// process has left. What it can't do is left to Set. It may be called once,
	// before Set.
	Resume(c *Config)
}

// Host is the node's own network, as far as the choice of subnets and devices
// depends on it.
type Host struct {
	// MTU of the device that the default route leaves by; 0 without one.
	MTU int
	// Prefixes that are routed, other than by the data plane's own devices, and
	// other than the default route.
	Prefixes []netip.Prefix
	// Devices by name.
	Devices map[string]Device
	// IPv6 is false when the host has no IPv6 at all.
	IPv6 bool
}

// Device is a device of the host.
type Device struct {
	Bridge bool
	// Own devices were made by this data plane.
	Own bool
	// Owner describes who made it, when another node of this product did.
	Owner     string
	Addresses []netip.Prefix
	MTU       int // bytes
}

// Counters are an interface's, as its container sees them.
type Counters struct {
	Interface                               string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// ErrPortInUse is wrapped by what Set reports for a port that another process
// of the host has.
var ErrPortInUse = errors.New("address already in use")

// ErrNoKeys is wrapped by what each Set reports for the tunnel of an encrypted overlay
// while the config has no keys: it is made, and lets nothing pass.
var ErrNoKeys = errors.New("it is encrypted, and the managers have told no keys: nothing is sent to other nodes, rather than in clear text")

// Item names a part of a Config: "bridge legion0", "overlay ID", "tunnel ID", "sandbox ID", "port tcp
// 0.0.0.0:80", "balancers" for virtual addresses, "mesh", "mesh-port tcp 80", or "rules" for packet filter rules as a whole.
type Item string

// BridgeItem names a bridge.
func BridgeItem(device string) Item { return Item("bridge " + device) }

// OverlayItem names an overlay as far as this node's own containers need it.
func OverlayItem(id string) Item { return Item("overlay " + id) }

// TunnelItem names an overlay's tunnel to other nodes.
func TunnelItem(id string) Item { return Item("tunnel " + id) }

// SandboxItem names a sandbox.
func SandboxItem(id string) Item { return Item("sandbox " + id) }

// PortItem names a published port.
func PortItem(k PortKey) Item { return Item("port " + k.String()) }

// BalancersItem names the virtual addresses of services.
const BalancersItem Item = "balancers"

// MeshItem names this node's part in the routing mesh.
const MeshItem Item = "mesh"

// MeshPortItem names a port of the routing mesh.
func MeshPortItem(k MeshKey) Item { return Item("mesh-port " + k.String()) }

// RulesItem names the packet filter rules and kernel settings.
const RulesItem Item = "rules"

// SetError says which parts of a Config could not be made so.
type SetError struct{ Items map[Item]error }

// maxReported bounds how many items an error's text names.
const maxReported = 3

func (e *SetError) Error() string {
	items := make([]Item, 0, len(e.Items))
	for it := range e.Items {
		items = append(items, it)
	}
	slices.Sort(items)
	var b strings.Builder
	b.WriteString("network: ")
	for i, it := range items {
		if i == maxReported {
			fmt.Fprintf(&b, "; and %d more", len(items)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", it, e.Items[it])
	}
	return b.String()
}

// Unwrap returns all items' errors.
func (e *SetError) Unwrap() []error {
	errs := make([]error, 0, len(e.Items))
	for _, err := range e.Items {
		errs = append(errs, err)
	}
	return errs
}
