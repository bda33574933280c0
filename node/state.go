package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/sys/atomicwriter"
)

// membership is what a node remembers of its swarm besides its certificates,
// in <data-root>/swarm/state.json. It is written when the node becomes a
// member and whenever the list of managers changes.
type membership struct {
	NodeID string
	// RaftID is the node's number in the managers' log: another one each time that
	// it becomes a manager; 0: it is none, or has not asked to join yet.
	RaftID        uint64 `json:",omitempty"`
	ClusterID     string
	ListenAddr    string // host:port for other nodes
	AdvertiseAddr string // host:port that other nodes are told
	DataPathAddr  string
	DataPathPort  uint32
	Managers      []swarm.Peer // last known, to find the swarm again
}

const stateFile = "state.json"

// loadMembership returns nil when the node is no member of a swarm.
func loadMembership(dir string) (*membership, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m membership
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	return &m, nil
}

func (m *membership) save(dir string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return atomicwriter.WriteFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600)
}
