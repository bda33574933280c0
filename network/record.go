package network

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/atomicwriter"

	dnet "github.com/moby/moby/api/types/network"
)

// record is what is kept of a network, one file each in Options.Dir. It is
// never changed once stored.
type record struct {
	Network dnet.Network
	// Device of the bridge; empty for host and none.
	Device string `json:",omitempty"`
	// External bridges were there before.
	External bool `json:",omitempty"`
	// Overlay is set for overlays of the swarm, which have no Device.
	Overlay *overlay `json:",omitempty"`
	// Macvlan is set for networks on a device of the host, which have no Device.
	Macvlan *macvlan `json:",omitempty"`
	// Managed networks are of the swarm, and made here after a configuration network
	// while containers need them.
	Managed bool `json:",omitempty"`
}

// plain reports whether a network makes no interfaces: host and none.
func (r *record) plain() bool { return r.Device == "" && r.Overlay == nil && r.Macvlan == nil }

// ofSwarm reports whether a network is here only while containers need it.
func (r *record) ofSwarm() bool { return r.Overlay != nil || r.Managed }

// endpoint is a container's place in a network. Never changed once stored.
type endpoint struct {
	NetworkID string
	// Settings as the engine shows them, complete.
	Settings *dnet.EndpointSettings
	// HostName of the interface; empty on host and none.
	HostName  string `json:",omitempty"`
	Interface string `json:",omitempty"` // name in the container
	// Grant is the id of the place that managers gave a container of this node's
	// users in a network of the swarm; empty for tasks.
	Grant string `json:",omitempty"`
	// Automatic endpoints are there because others need them, and not shown.
	Automatic bool `json:",omitempty"`
}

// attachment is what is kept of a container, one file each in
// Options.RuntimeDir. Never changed once stored.
type attachment struct {
	ID        string
	Endpoints []endpoint // in order of their interfaces
	// Asked is what was to be published, Published what it came to.
	Asked     dnet.PortMap `json:",omitempty"`
	Published []Port       `json:",omitempty"`
	// Resolves is set once the container has been in a network with names: its
	// resolv.conf says so from then on. DNS is what it wants to have asked.
	Resolves bool         `json:",omitempty"`
	DNS      []netip.Addr `json:",omitempty"`
}

const fileSuffix = ".json"

// loadAll reads every file of a folder. A file that can't be read is reported
// by bad and left alone: one torn file must not keep a node from starting.
func loadAll[T any](dir string, key func(*T) string, bad func(path string, err error)) (map[string]*T, error) {
	all := map[string]*T{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what is known of networks: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), fileSuffix)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		v := new(T)
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err == nil && key(v) != name {
			err = fmt.Errorf("it holds %q", key(v))
		}
		if err != nil {
			bad(path, err)
			continue
		}
		all[name] = v
	}
	return all, nil
}

// saveDurably writes a file that must survive a loss of power.
func saveDurably(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := atomicwriter.WriteFile(filepath.Join(dir, name+fileSuffix), b, 0o600); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // nothing was written
	return d.Sync()
}

// save writes a file that need only survive this process, whole or not at all.
func save(dir, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, name+fileSuffix)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func forget(dir, name string) error {
	if err := os.Remove(filepath.Join(dir, name+fileSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// newID returns an id of the form that Docker's local objects have: 64 hex
// digits.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}
