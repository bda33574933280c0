package keeper

import (
	"encoding/json"
	"net/netip"

	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/network/crypt"
)

// Version is of what daemon and keeper say to each other, and of what a keeper does:
// a daemon ends a keeper of another version. It is raised with each change of the
// keeper that is not to wait until the node starts anew.
const Version = 1

// Resolver answers in a sandbox.
type Resolver struct {
	Sandbox string
	Inode   uint64 // of the sandbox's namespace
	Config  *network.Resolver
}

// Tap is the device of an encrypted overlay.
type Tap struct {
	Overlay string
	Index   int    // of the device, in the overlay's namespace
	VNI     uint32 // the overlay's VXLAN id
}

// Peers are an encrypted overlay's endpoints on other nodes, with those.
type Peers struct {
	VNI   uint32
	Nodes map[crypt.MAC]netip.Addr
}

// Settings are what protects encrypted overlays' packets. See crypt.Config.
type Settings struct {
	Local netip.Addr
	Keys  []crypt.Key
	Send  uint32
}

// Status is what a keeper has carried since it began, and whether packets of
// encrypted overlays pass now.
type Status struct {
	Counts      crypt.Counts
	Established bool
}

// request asks for one thing or several, which are done in the order of the fields.
type request struct {
	Hello      int         `json:",omitempty"` // the daemon's Version
	Forget     []string    `json:",omitempty"` // sandboxes
	Answer     []Resolver  `json:",omitempty"` // with two files each: UDP, TCP
	Resolve    []Resolver  `json:",omitempty"` // of those that answer: anew by their Config
	Zones      *zonesDelta `json:",omitempty"`
	CloseCrypt bool        `json:",omitempty"` // socket and devices
	OpenCrypt  *opening    `json:",omitempty"`
	Settings   *Settings   `json:",omitempty"`
	Peers      *peersDelta `json:",omitempty"`
	DropTap    string      `json:",omitempty"` // an overlay
	Tap        *Tap        `json:",omitempty"` // with a file
	Status     bool        `json:",omitempty"`
	End        bool        `json:",omitempty"`
}

// opening is of the UDP socket of encrypted overlays, in the host's namespace.
type opening struct{ At netip.AddrPort }

// reply answers a request, or passes on what is logged.
type reply struct {
	Log     json.RawMessage `json:",omitempty"`
	Error   string          `json:",omitempty"`
	Version int             `json:",omitempty"`
	More    bool            `json:",omitempty"` // another reply to the same request follows
	Held    *held           `json:",omitempty"`
	Status  *Status         `json:",omitempty"`
}

// held is what a keeper holds, or a part of it.
type held struct {
	At        netip.AddrPort // of the UDP socket of encrypted overlays; not valid: there is none
	Taps      []Tap          `json:",omitempty"`
	Resolvers []Resolver     `json:",omitempty"`
	Peers     *peersDelta    `json:",omitempty"`
}

// portion is how much goes into one message, in names, addresses or endpoints,
// where it can be parted.
const portion = 1 << 14

// zonesDelta changes what names there are. Queries that arrive after the reply to
// the last part are answered by it all.
type zonesDelta struct {
	Anew  bool        `json:",omitempty"` // there are none but these
	More  bool        `json:",omitempty"` // it is a part, and another one follows
	Drop  []string    `json:",omitempty"` // ids
	Zones []zoneDelta `json:",omitempty"`
}

// zoneDelta changes a zone, or makes it.
type zoneDelta struct {
	ID         string
	Name       string
	Put        []nameDelta  `json:",omitempty"`
	Drop       []string     `json:",omitempty"` // names
	Owners     []ownerDelta `json:",omitempty"`
	DropOwners []netip.Addr `json:",omitempty"`
}

type nameDelta struct {
	Name      string
	Addresses []netip.Addr `json:",omitempty"`
}

type ownerDelta struct {
	Address netip.Addr
	Owner   string
}

// peersDelta changes what is known of other nodes' endpoints.
type peersDelta struct {
	More     bool           `json:",omitempty"` // it is a part, and another one follows
	Drop     []string       `json:",omitempty"` // overlays
	Overlays []overlayDelta `json:",omitempty"`
}

// overlayDelta changes an overlay's, or makes it known.
type overlayDelta struct {
	Overlay string
	VNI     uint32
	Put     []nodeDelta `json:",omitempty"`
	Drop    []crypt.MAC `json:",omitempty"`
}

type nodeDelta struct {
	MAC  crypt.MAC
	Node netip.Addr
}
