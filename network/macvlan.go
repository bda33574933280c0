package network

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/legion-swarm/legion/api"
)

// Modes of interfaces on a device of the host (Interface.Mode), as the kernel has
// them: how those on one device reach each other.
const (
	MacvlanBridge   = "bridge"   // directly
	MacvlanPrivate  = "private"  // not at all
	MacvlanVEPA     = "vepa"     // by a switch that sends frames back
	MacvlanPassthru = "passthru" // there is only one
)

func macvlanModes() []string {
	return []string{MacvlanBridge, MacvlanPrivate, MacvlanVEPA, MacvlanPassthru}
}

// Drivers of this node's own networks.
const (
	driverBridge  = "bridge"
	driverMacvlan = "macvlan"
	driverIPvlan  = "ipvlan"
)

// loopbackDevice is every namespace's own.
const loopbackDevice = "lo"

// Options of macvlan networks, as Docker names them.
const (
	optParent      = "parent"
	optMacvlanMode = "macvlan_mode"
)

// macvlan is what such a network has in place of a bridge.
type macvlan struct {
	Parent string // device of the host
	Mode   string `json:",omitempty"`
}

// parseMacvlan reads a macvlan network's options and looks at the device.
func parseMacvlan(name string, options map[string]string, host *Host) (*macvlan, error) {
	m := &macvlan{}
	for _, k := range slices.Sorted(maps.Keys(options)) {
		switch v := options[k]; {
		case k == optParent:
			m.Parent = v
		case k == optMacvlanMode:
			if m.Mode = v; v != "" && !slices.Contains(macvlanModes(), v) {
				return nil, api.Errorf(api.Invalid, "network %s: option %s=%q: must be one of %s", name, k, v, strings.Join(macvlanModes(), ", "))
			}
		case k == optMTU, k == optIfPrefix, k == optEnable4, k == optEnable6:
		case strings.HasPrefix(k, optionsReserve):
			return nil, api.Errorf(api.Invalid, "network %s: option %s is not served by macvlan networks", name, k)
		}
	}
	switch d, there := host.Devices[m.Parent]; {
	case m.Parent == "":
		return nil, api.Errorf(api.Invalid, "network %s: a macvlan network needs a device of the host (--opt parent=DEVICE)", name)
	case m.Parent == loopbackDevice:
		return nil, api.Errorf(api.Invalid, "network %s: option parent=%s: containers can't be on the loopback device; name one that leads to a network", name, m.Parent)
	case !there:
		return nil, api.Errorf(api.Invalid, "network %s: option parent=%s: this host has no such device; one for a VLAN is to be made before", name, m.Parent)
	case d.Own || d.Owner != "":
		return nil, api.Errorf(api.Invalid, "network %s: option parent=%s: that device is a network's", name, m.Parent)
	}
	return m, nil
}

func (f *Interface) validateParent() error {
	switch {
	case f.Bridge != "" || f.Overlay != "":
		return fmt.Errorf("it is on device %s, and on bridge %q or overlay %q", f.Parent, f.Bridge, f.Overlay)
	case !validDevice(f.Parent):
		return fmt.Errorf("parent %q: not a name for a device", f.Parent)
	case f.Mode != "" && !slices.Contains(macvlanModes(), f.Mode):
		return fmt.Errorf("unknown macvlan mode %q", f.Mode)
	}
	return nil
}
