package node

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/issuer"
)

// SwarmInit makes a swarm of this node. A new cluster is forced only where there
// is one to go on with: provisioning tools ask for it always, as Docker lets them.
func (s *swarmNode) SwarmInit(ctx context.Context, r *swarm.InitRequest) (string, error) {
	if !s.changing.TryLock() {
		return "", api.Errorf(api.Unavailable, "the node is joining or leaving a swarm at this moment")
	}
	defer s.changing.Unlock()
	cur, err := s.current()
	switch {
	case cur == nil && err == nil:
	case r.ForceNewCluster:
		return s.forceNewCluster(ctx, r)
	default:
		return "", api.Errorf(api.Unavailable, "%s", inSwarm)
	}
	defer s.begins()()
	state, err := s.initState(r)
	if err != nil {
		return "", err
	}
	state.RaftID = newRaftID()
	external, err := issuer.NewExternal(issuer.ExternalConfig{
		Certificate: func() (*tls.Certificate, error) { return &tls.Certificate{}, nil }, Log: s.log, // there is none yet
	})
	if err != nil {
		return "", err
	}
	var routes []netip.Prefix
	if s.networks != nil {
		if routes, err = s.networks.Routes(ctx); err != nil {
			return "", err
		}
	}
	g, err := newSwarm(ctx, r, state, external, routes, time.Now())
	if err != nil {
		return "", err
	}
	state.NodeID, state.ClusterID = g.node.ID, g.cluster.ID
	state.Managers = []swarm.Peer{{NodeID: g.node.ID, Addr: state.AdvertiseAddr}}
	if err := s.found(ctx, state, g); err != nil {
		s.end(nil)
		return "", errors.Join(err, forget(s.dir))
	}
	return g.node.ID, nil
}

// initState checks the request and settles the addresses.
func (s *swarmNode) initState(r *swarm.InitRequest) (*membership, error) {
	if err := checkListen(r.ListenAddr); err != nil {
		return nil, err
	}
	if err := control.CheckInit(r); err != nil {
		return nil, err
	}
	state := &membership{DataPathPort: r.DataPathPort}
	return state, s.settleAddresses(state, r)
}

// settleAddresses fills in where others reach this node.
func (s *swarmNode) settleAddresses(state *membership, r *swarm.InitRequest) error {
	host, err := hostInterfaces()
	if err != nil {
		return err
	}
	if state.ListenAddr, err = resolveListen(r.ListenAddr, host); err != nil {
		return err
	}
	if state.AdvertiseAddr, err = resolveAdvertise(r.AdvertiseAddr, s.advertise, state.ListenAddr, host); err != nil {
		return err
	}
	if r.DataPathAddr != "" {
		if state.DataPathAddr, err = resolveDataPath(r.DataPathAddr, host); err != nil {
			return err
		}
	}
	return nil
}

// found puts a new swarm on disk, begins it and waits until this node is a
// leader with a ready agent.
func (s *swarmNode) found(ctx context.Context, state *membership, g *genesis) error {
	if err := os.MkdirAll(filepath.Join(s.dir, certificatesDir), 0o700); err != nil {
		return err
	}
	kek := g.cluster.UnlockKey
	if err := keyFiles(s.dir).Save(g.keys, kek); err != nil {
		return err
	}
	cfg := s.member(state, g, false)
	cfg.kek = kek
	m, err := openMember(cfg)
	if err != nil {
		return err
	}
	r := s.begin(m)
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if err := r.taken(ctx); err != nil {
		return err
	}
	// Last, so that a daemon that dies before has no swarm.
	return r.keep()
}

// forceNewCluster has this manager go on without the others, whose quorum is lost.
// Services, secrets, networks and tasks stay as they are, and so do running
// containers.
func (s *swarmNode) forceNewCluster(ctx context.Context, r *swarm.InitRequest) (string, error) {
	cur, err := s.current()
	if errors.Is(err, errLocked) {
		return "", err
	}
	state, err := loadMembership(s.dir)
	if err != nil {
		return "", err
	}
	if state == nil || state.RaftID == 0 {
		return "", api.Errorf(api.Unavailable, "%s", isWorker)
	}
	if err := checkListen(r.ListenAddr); err != nil {
		return "", err
	}
	old := *state
	if err := s.settleAddresses(state, r); err != nil {
		return "", err
	}
	state.Managers = []swarm.Peer{{NodeID: state.NodeID, Addr: state.AdvertiseAddr}}
	s.end(nil)
	cfg := s.member(state, nil, true)
	cfg.forced = true
	if cur != nil {
		cfg.kek, _ = cur.vault.key()
	}
	m, err := openMember(cfg)
	if err != nil {
		return "", errors.Join(err, s.again(&old, cfg.kek))
	}
	run := s.begin(m)
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	if err := run.taken(ctx); err != nil {
		return "", err
	}
	return state.NodeID, run.keep()
}

// again begins the membership as it was.
func (s *swarmNode) again(state *membership, kek []byte) error {
	cfg := s.member(state, nil, true)
	cfg.kek = kek
	m, err := openMember(cfg)
	if err != nil {
		return s.failed(err)
	}
	s.begin(m)
	return nil
}
