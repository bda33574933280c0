package network

import (
	"cmp"
	"context"
	"maps"
	"strconv"
	"strings"

	dnet "github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	// maxNetworks bounds the networks of a node: a bridge holds 1,024 ports, and
	// a kernel's patience with bridges ends somewhere, too.
	maxNetworks = 4096
	// maxName bounds a name in bytes, maxLabels the options and the labels.
	maxName, maxLabels = 255, 1000
)

// Create makes a node-local bridge network as Docker's network create does.
// Errors: Invalid, PermissionDenied (a predefined name, a subnet that is in
// use), Exists, ResourceExhausted.
func (n *Networks) Create(ctx context.Context, q *dnet.CreateRequest) (*dnet.CreateResponse, error) {
	host, err := n.plane.Host(ctx)
	if err != nil {
		return nil, api.Errorf(api.Internal, "network %s: look at the host's network: %w", q.Name, err)
	}
	r, release, err := n.draft(q, host)
	if err != nil {
		return nil, err
	}
	if err := saveDurably(n.o.Dir, r.Network.ID, r); err != nil {
		release()
		return nil, api.Errorf(api.Internal, "network %s: write it to %s: %w", q.Name, n.o.Dir, err)
	}
	n.mu.Lock()
	err = n.add(r)
	n.mu.Unlock()
	release()
	if err == nil {
		err = itemsFailed(n.set.commit(ctx, n.config), BridgeItem(r.Device), RulesItem)
	}
	if err != nil {
		if w, lost := n.take(r.Network.ID, func(*netw) error { return nil }); lost == nil {
			_ = n.dispose(context.WithoutCancel(ctx), w) // what stays behind is logged, and removed later
		}
		return nil, api.Errorf(classOr(err, api.Internal), "network %s: %w", q.Name, err)
	}
	return &dnet.CreateResponse{ID: r.Network.ID}, nil
}

func classOr(err error, c api.Class) api.Class {
	if k := api.ClassOf(err); k != api.Internal {
		return k
	}
	return c
}

// draft decides on all of a new network and reserves its name and subnets until
// release is called.
func (n *Networks) draft(q *dnet.CreateRequest, host *Host) (*record, func(), error) {
	if err := checkRequest(q); err != nil {
		return nil, nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, nil, errClosed
	}
	if len(n.nets)+len(n.creating) >= maxNetworks {
		return nil, nil, api.Errorf(api.ResourceExhausted, "this node has %d networks, the most it may have; remove some (docker network prune)", len(n.nets))
	}
	if n.named(q.Name) {
		return nil, nil, api.Errorf(api.Exists, "network with name %s already exists", q.Name)
	}
	q, err := n.fromConfig(q)
	if err != nil {
		return nil, nil, err
	}
	r, err := n.newRecord(q, host)
	if err != nil {
		return nil, nil, err
	}
	n.creating[r.Network.Name] = r
	return r, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.creating, r.Network.Name)
	}, nil
}

// newRecord decides on a new network. Callers hold mu.
func (n *Networks) newRecord(q *dnet.CreateRequest, host *Host) (*record, error) {
	r := &record{Network: dnet.Network{
		Name: q.Name, ID: newID(), Created: n.o.Now().UTC(), Scope: scopeLocal, Driver: driverBridge,
		Internal: q.Internal, Attachable: q.Attachable,
		Options: orEmpty(q.Options), Labels: orEmpty(q.Labels),
	}}
	if q.ConfigFrom != nil {
		r.Network.ConfigFrom = *q.ConfigFrom
	}
	var err error
	switch {
	case q.ConfigOnly:
		return r, n.configNetwork(r, q)
	case q.Driver == driverMacvlan:
		r.Network.Driver = driverMacvlan
		r.Macvlan, err = parseMacvlan(q.Name, r.Network.Options, host)
	default:
		err = n.draftDevice(r, host)
	}
	if err != nil {
		return nil, err
	}
	return r, n.draftAddresses(r, q, host)
}

// named reports whether a network has or is about to have the name.
func (n *Networks) named(name string) bool {
	for _, w := range n.nets {
		if w.Network.Name == name {
			return true
		}
	}
	_, ok := n.creating[name]
	return ok
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

func validName(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20 // lower case
		alnum := c >= 'a' && c <= 'z' || s[i] >= '0' && s[i] <= '9'
		if !alnum && (i == 0 || s[i] != '_' && s[i] != '.' && s[i] != '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// checkRequest refuses what can be refused by reading the request alone.
func checkRequest(q *dnet.CreateRequest) error {
	switch {
	case q.Name == "" || strings.TrimSpace(q.Name) == "":
		return api.Errorf(api.Invalid, "invalid network name: name is empty")
	case !validName(q.Name):
		return api.Errorf(api.Invalid, "invalid network name %q: only letters, digits, _ . and - are allowed, at most %d, beginning with a letter or digit", q.Name, maxName)
	case predefined(q.Name):
		return api.Errorf(api.PermissionDenied, "operation is not permitted on predefined %s network", q.Name)
	case !q.ConfigOnly && q.Driver != "" && q.Driver != driverBridge && q.Driver != driverMacvlan && q.Driver != "default":
		return checkDriver(q.Driver)
	case q.Scope != "" && q.Scope != scopeLocal:
		return api.Errorf(api.Invalid, "network %s: the scope of a %s network of this node is local, not %q", q.Name, cmp.Or(q.Driver, driverBridge), q.Scope)
	case q.ConfigOnly && q.ConfigFrom != nil && q.ConfigFrom.Network != "":
		return api.Errorf(api.PermissionDenied, "network %s: a configuration network can't be made from another (--config-only, --config-from)", q.Name)
	case q.ConfigOnly && (q.Internal || q.Attachable):
		return api.Errorf(api.PermissionDenied, "network %s: a configuration network can't be attachable or internal: that is said of networks that are made from it", q.Name)
	case q.Ingress:
		return api.Errorf(api.Invalid, "network %s: the ingress network must have the overlay driver", q.Name)
	case noFamily(q):
		return api.Errorf(api.Invalid, "network %s: IPv4 or IPv6 must be enabled", q.Name)
	case len(q.Options) > maxLabels || len(q.Labels) > maxLabels:
		return api.Errorf(api.Invalid, "network %s: more than %d options or labels", q.Name, maxLabels)
	}
	if err := checkIPAM(q); err != nil {
		return err
	}
	if q.ConfigOnly || q.Driver == driverMacvlan {
		return nil // what the options mean is up to the driver
	}
	_, err := parseSettings(q.Options)
	return err
}

// families are the address families that a network is to have: what the request says,
// or else its options.
func families(q *dnet.CreateRequest) (v4, v6 bool) {
	enabled := func(asked *bool, option string, otherwise bool) bool {
		if asked != nil {
			return *asked
		}
		if on, err := strconv.ParseBool(q.Options[option]); err == nil {
			return on
		}
		return otherwise
	}
	return enabled(q.EnableIPv4, optEnable4, true), enabled(q.EnableIPv6, optEnable6, false)
}

func noFamily(q *dnet.CreateRequest) bool {
	v4, v6 := families(q)
	return !v4 && !v6
}

func ipv6(q *dnet.CreateRequest) bool {
	_, v6 := families(q)
	return v6
}

// Drivers of addresses (IPAM). With the second, containers get none from us: they ask a
// server of the network for theirs, or give them to themselves.
const (
	ipamDefault = "default"
	ipamNull    = "null"
)

func checkIPAM(q *dnet.CreateRequest) error {
	switch {
	case q.IPAM == nil || q.IPAM.Driver == "" || q.IPAM.Driver == ipamDefault:
	case q.IPAM.Driver != ipamNull:
		return api.Errorf(api.NotFound, "network %s: IPAM driver %q not found; there are \"default\" and, for macvlan, \"null\"", q.Name, q.IPAM.Driver)
	case !q.ConfigOnly && q.Driver != driverMacvlan:
		return api.Errorf(api.Invalid, "network %s: the IPAM driver \"null\" gives containers no addresses, and a bridge leads only to those that it gave: it is for macvlan networks", q.Name)
	case len(q.IPAM.Config) > 0 || ipv6(q):
		return api.Errorf(api.Invalid, "network %s: null ipam driver does not handle specific address pool requests: name no subnet, gateway or range, nor --ipv6", q.Name)
	}
	return nil
}

func checkDriver(driver string) error {
	if driver == "host" || driver == "null" {
		return api.Errorf(api.PermissionDenied, "only one instance of %q network is allowed", driver)
	}
	if driver == driverIPvlan {
		return api.Errorf(api.NotFound, "network driver ipvlan is not served; take macvlan, which gives containers MAC addresses of their own (--driver macvlan --opt parent=DEVICE)")
	}
	return api.Errorf(api.NotFound, "network driver %q not found; node-local networks have the driver bridge or macvlan", driver)
}
