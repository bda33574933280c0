package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// phase is where a container is in its life.
type phase string

// The phases that are written down. A container that is being made or removed
// is removed for good when the daemon starts again.
const (
	phaseMaking   phase = "making"
	phaseCreated  phase = "created"
	phaseStarting phase = "starting"
	phaseRunning  phase = "running"
	phaseExited   phase = "exited"
	phaseRemoving phase = "removing"
	phaseDead     phase = "dead" // a removal failed
)

// record is what is known of a container, as it is written to disk. Values
// that it points to are replaced, never changed.
type record struct {
	ID      string
	Name    string
	Created time.Time
	Managed bool `json:",omitzero"`

	ImageID   string
	ImageName string // as the user gave it
	Platform  string
	Config    *container.Config
	Host      *container.HostConfig
	// Endpoints are the networks wanted. Joined is what was given, while it runs.
	Endpoints map[string]*network.EndpointSettings
	Joined    map[string]*network.EndpointSettings `json:",omitempty"`
	// Seen are the networks that it has joined, by name, as long as they are wanted.
	Seen    map[string]seenNetwork `json:",omitempty"`
	Ports   network.PortMap        `json:",omitempty"` // as published, while it runs
	Sandbox string                 `json:",omitempty"` // path of the namespace, while it runs
	Mounts  []mountPoint           `json:",omitempty"`
	Files   []fileRecord           `json:",omitempty"`

	Phase        phase
	Paused       bool `json:",omitzero"`
	Restarting   bool `json:",omitzero"`
	Pid          int  `json:",omitzero"`
	ExitCode     int
	OOMKilled    bool   `json:",omitzero"`
	Error        string `json:",omitempty"`
	StartedAt    time.Time
	FinishedAt   time.Time
	RestartCount int  `json:",omitzero"`
	Stopped      bool `json:",omitzero"` // by a user: unless-stopped does not start it again
	// Unhealthy tells that it was unhealthy when it ended.
	Unhealthy bool `json:",omitzero"`
}

// seenNetwork is what is told of a network when the container is not in it, and the
// addresses that it had there last.
type seenNetwork struct {
	ID, Driver string
	IPv4       netip.Addr `json:",omitzero"`
	IPv6       netip.Addr `json:",omitzero"`
}

// networks are the endpoints to show. Those of a container that has run, and does
// not now, have the ids of the networks that it was in: Compose compares them to
// tell whether it is still as it should be.
func (r *record) networks() map[string]*network.EndpointSettings {
	if r.Joined != nil {
		return r.Joined
	}
	if len(r.Seen) == 0 {
		return r.Endpoints
	}
	eps := make(map[string]*network.EndpointSettings, len(r.Endpoints))
	for wanted, ep := range r.Endpoints {
		name := r.seenAs(wanted)
		ep = ep.Copy()
		if seen, ok := r.Seen[name]; ok {
			ep.NetworkID, ep.DNSNames = seen.ID, dnsNames(r, name, ep)
		}
		eps[name] = ep
	}
	return eps
}

// exposed are the ports to show that a running container listens on, published
// or not. Without a network of its own it has none.
func (r *record) exposed() network.PortSet {
	m := r.Host.NetworkMode
	if r.Phase != phaseRunning || m.IsHost() || m.IsContainer() || m.IsNone() {
		return nil
	}
	return r.Config.ExposedPorts
}

// seenAs is the name of a network that was asked for by name or id.
func (r *record) seenAs(wanted string) string {
	if _, ok := r.Seen[wanted]; !ok {
		for name, seen := range r.Seen {
			if seen.ID == wanted {
				return name
			}
		}
	}
	return wanted
}

// seen is what is known of one of the networks that it shows.
func (r *record) seen(name string) seenNetwork {
	if n, ok := r.Seen[name]; ok {
		return n
	}
	if ep := r.networks()[name]; ep != nil && ep.NetworkID != "" {
		return seenNetwork{ID: ep.NetworkID}
	}
	return seenNetwork{ID: name}
}

// see notes the networks that it is in now.
func (r *record) see(known func(net string) (network.Network, bool)) {
	r.Seen = make(map[string]seenNetwork, len(r.Joined))
	for name, ep := range r.Joined {
		n, _ := known(ep.NetworkID)
		r.Seen[name] = seenNetwork{ID: ep.NetworkID, Driver: n.Driver, IPv4: ep.IPAddress, IPv6: ep.GlobalIPv6Address}
	}
}

// fileRecord is a File without its data, which is in memory only.
type fileRecord struct {
	Path   string // in the container
	Source string // below the container's folder of files
}

const recordName = "config.json"

// writeRecord replaces the record in dir. It is not forced to the disk: after
// a power failure there is no process left that it could tell of, and a record
// that is lost or torn makes the container one that was never made.
func writeRecord(dir string, r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("engine: container %s: %w", r.ID, err)
	}
	tmp := filepath.Join(dir, "."+recordName)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("engine: container %s: %w", r.ID, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, recordName)); err != nil {
		return fmt.Errorf("engine: container %s: %w", r.ID, err)
	}
	return nil
}

// readRecord reads a record. errors.Is(err, errNoRecord) when there is none
// that can be read.
func readRecord(dir, id string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoRecord
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoRecord, err)
	}
	if r.ID != id || r.Config == nil || r.Host == nil || r.Name == "" {
		return nil, fmt.Errorf("%w: it is not one of container %s", errNoRecord, id)
	}
	return r, nil
}

var errNoRecord = errors.New("engine: no readable record")
