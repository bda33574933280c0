package node

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/allocator"
	"github.com/legion-swarm/legion/manager/control"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/store"
)

// Folders below <data-root>/swarm.
const (
	certificatesDir = "certificates"
	raftDir         = "raft"
	workerDir       = "worker"
)

func keyFiles(dir string) ca.Files { return ca.Files{Dir: filepath.Join(dir, certificatesDir)} }

// genesis is a new swarm: what the first manager's log begins with.
type genesis struct {
	cluster *api.Cluster
	node    *api.Node
	keys    *ca.Keys
	ingress *api.Network // of the routing mesh
}

// Numbers that Docker gives a swarm when the user names none.
const (
	defaultTaskHistory      = 5
	defaultSnapshotInterval = 10_000
	defaultSlowFollower     = 500
	defaultElectionTick     = 10
	defaultHeartbeatTick    = 1
	defaultHeartbeat        = 5 * time.Second
	defaultDataPathPort     = 4789
)

// newSwarm makes the certificates and objects of a swarm whose first manager
// this node is.
func newSwarm(ctx context.Context, r *swarm.InitRequest, state *membership, external *issuer.External, routes []netip.Prefix, now time.Time) (*genesis, error) {
	root, err := firstRoot(&r.Spec.CAConfig, now)
	if err != nil {
		return nil, err
	}
	rootKey, err := root.KeyPEM()
	if err != nil {
		return nil, err
	}
	c := &api.Cluster{
		RootCA:     api.RootCA{Cert: root.CertPEM(), Key: rootKey, Digest: root.Digest(), LastForced: r.Spec.CAConfig.ForceRotate},
		JoinTokens: swarm.JoinTokens{Worker: ca.NewToken(root), Manager: ca.NewToken(root)},
	}
	c.ID = api.NewID()
	c.Spec = specWithDefaults(r.Spec)
	if r.AutoLockManagers || c.Spec.EncryptionConfig.AutoLockManagers {
		c.Spec.EncryptionConfig.AutoLockManagers, c.UnlockKey = true, ca.NewUnlockKey()
	}
	if c.TLSInfo, err = ca.TLSInfo(&c.RootCA); err != nil {
		return nil, err
	}
	c.DataPathPort = r.DataPathPort
	if c.DataPathPort == 0 {
		c.DataPathPort = defaultDataPathPort
	}
	c.DefaultAddrPool, c.SubnetSize = r.DefaultAddrPool, r.SubnetSize
	if len(c.DefaultAddrPool) == 0 {
		c.DefaultAddrPool = []netip.Prefix{allocator.DefaultPool()}
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = allocator.DefaultSubnetSize
	}
	g, err := firstNode(ctx, c, root, external, now)
	if err != nil {
		return nil, err
	}
	if r.Availability != "" {
		g.node.Spec.Availability = r.Availability
	}
	g.node.ManagerAddr, g.node.RaftID = state.AdvertiseAddr, state.RaftID
	if g.ingress, err = control.Ingress(c, routes...); err != nil {
		return nil, err
	}
	return g, nil
}

// firstRoot returns the root that the user brings, or that of the first external CA,
// or a new one.
func firstRoot(c *swarm.CAConfig, now time.Time) (*ca.Root, error) {
	given := *c
	if len(c.ExternalCAs) > 0 && c.SigningCACert == "" {
		given.SigningCACert = c.ExternalCAs[0].CACert
	}
	given.ForceRotate = 0
	change, err := ca.Settle(&api.RootCA{}, &given, now)
	if err != nil || change.Next != nil {
		return change.Next, err
	}
	return ca.NewRoot(now)
}

// firstNode makes this node's identity and object.
func firstNode(ctx context.Context, c *api.Cluster, root *ca.Root, external *issuer.External, now time.Time) (*genesis, error) {
	id := ca.Identity{NodeID: api.NewID(), Role: swarm.NodeRoleManager, Cluster: c.ID}
	key, csr, err := ca.NewRequest()
	if err != nil {
		return nil, err
	}
	var cert []byte
	if urls := ca.External(c.Spec.CAConfig.ExternalCAs, c.RootCA.Cert, c.RootCA.Cert); len(urls) > 0 && !root.CanSign() {
		if cert, err = external.Sign(ctx, urls, root, csr, id); err != nil {
			return nil, fmt.Errorf("%w: one that asks for a certificate of the swarm can be taken later: docker swarm ca --rotate --ca-cert FILE --external-ca …", err)
		}
	} else if cert, err = root.Issue(csr, id, c.Spec.CAConfig.NodeCertExpiry, now); err != nil {
		return nil, err
	}
	keys, err := ca.NewKeys(root, cert, key, now)
	if err != nil {
		return nil, err
	}
	keys = withFirstLogKey(keys)
	n := issuer.NewNode(id.NodeID, swarm.NodeRoleManager, swarm.NodeAvailabilityActive, csr)
	n.Certificate.State, n.Certificate.Cert = api.CertificateIssued, cert
	return &genesis{cluster: c, node: n, keys: keys}, nil
}

// specWithDefaults fills in what Docker fills in.
func specWithDefaults(s swarm.Spec) swarm.Spec {
	if s.Name == "" {
		s.Name = "default"
	}
	if s.Orchestration.TaskHistoryRetentionLimit == nil {
		s.Orchestration.TaskHistoryRetentionLimit = new(int64(defaultTaskHistory))
	}
	set := func(v *uint64, d uint64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&s.Raft.SnapshotInterval, defaultSnapshotInterval)
	set(&s.Raft.LogEntriesForSlowFollowers, defaultSlowFollower)
	if s.Raft.KeepOldSnapshots == nil {
		s.Raft.KeepOldSnapshots = new(uint64)
	}
	if s.Raft.ElectionTick == 0 {
		s.Raft.ElectionTick = defaultElectionTick
	}
	if s.Raft.HeartbeatTick == 0 {
		s.Raft.HeartbeatTick = defaultHeartbeatTick
	}
	if s.Dispatcher.HeartbeatPeriod == 0 {
		s.Dispatcher.HeartbeatPeriod = defaultHeartbeat
	}
	if s.CAConfig.NodeCertExpiry == 0 {
		s.CAConfig.NodeCertExpiry = ca.DefaultExpiry
	}
	// They are kept with the roots.
	s.CAConfig.SigningCACert, s.CAConfig.SigningCAKey = "", ""
	return s
}

// found writes the swarm's first objects, once.
func (g *genesis) found(ctx context.Context, s *store.Store) error {
	_, err := s.Update(ctx, func(tx *store.Tx) error {
		if store.Count[*api.Cluster](tx) > 0 {
			return nil
		}
		if err := store.Create(tx, g.cluster); err != nil {
			return err
		}
		for _, name := range []string{"bridge", "host", "none"} {
			if err := store.Create(tx, predefined(name)); err != nil {
				return err
			}
		}
		if err := store.Create(tx, g.ingress); err != nil {
			return err
		}
		return store.Create(tx, g.node)
	})
	return err
}

// goOnAlone makes all other managers workers that are down: they are not members
// of the log any more, and their tasks are replaced unless they come back.
func goOnAlone(ctx context.Context, s *store.Store, id string, raftID uint64, addr string) error {
	now := time.Now().UTC()
	_, err := s.Update(ctx, func(tx *store.Tx) error {
		for n := range store.List[*api.Node](tx) {
			u := *store.Get[*api.Node](tx, n.ID)
			switch {
			case n.ID == id:
				u.Spec.Role, u.Role, u.RaftID, u.ManagerAddr = swarm.NodeRoleManager, swarm.NodeRoleManager, raftID, addr
			case n.Role == swarm.NodeRoleManager || n.Spec.Role == swarm.NodeRoleManager:
				u.Spec.Role, u.Role, u.RaftID, u.ManagerAddr = swarm.NodeRoleWorker, swarm.NodeRoleWorker, 0, ""
				u.Status.State, u.Status.Message = swarm.NodeStateDown, "this manager was left behind when a new cluster was forced"
				if u.DownSince.IsZero() {
					u.DownSince = now
				}
			default:
				continue
			}
			if err := store.Put(tx, &u); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// predefined is a network that every node has and services can name.
func predefined(name string) *api.Network {
	n := &api.Network{Predefined: true}
	n.ID, n.Spec.Name, n.Spec.Scope = api.NewID(), name, scopeSwarm
	driver := name
	if name == "none" {
		driver = "null"
	}
	n.Spec.DriverConfiguration = &swarm.Driver{Name: driver}
	n.DriverState = swarm.Driver{Name: driver}
	return n
}
