package control

import (
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/allocator"
)

const (
	swarmName          = "default"
	minHeartbeat       = time.Second
	maxHeartbeat       = 24 * time.Hour
	minDataPort        = 1024
	maxDataPort        = 49151
	maxAddrPools       = 64
	maxSnapshotEntries = 1 << 32
)

// merged returns the old spec with what the new one says: what it leaves at zero
// stays, as Docker has it.
func merged(old, new *swarm.Spec) swarm.Spec {
	n := *new
	n.Name = or(n.Name, old.Name)
	if n.Labels == nil {
		n.Labels = old.Labels
	}
	n.Orchestration.TaskHistoryRetentionLimit = or(n.Orchestration.TaskHistoryRetentionLimit, old.Orchestration.TaskHistoryRetentionLimit)
	n.Raft.SnapshotInterval = or(n.Raft.SnapshotInterval, old.Raft.SnapshotInterval)
	n.Raft.KeepOldSnapshots = or(n.Raft.KeepOldSnapshots, old.Raft.KeepOldSnapshots)
	n.Raft.LogEntriesForSlowFollowers = or(n.Raft.LogEntriesForSlowFollowers, old.Raft.LogEntriesForSlowFollowers)
	n.Raft.ElectionTick = or(n.Raft.ElectionTick, old.Raft.ElectionTick)
	n.Raft.HeartbeatTick = or(n.Raft.HeartbeatTick, old.Raft.HeartbeatTick)
	n.Dispatcher.HeartbeatPeriod = or(n.Dispatcher.HeartbeatPeriod, old.Dispatcher.HeartbeatPeriod)
	n.CAConfig.NodeCertExpiry = or(n.CAConfig.NodeCertExpiry, old.CAConfig.NodeCertExpiry)
	// They are kept with the roots, not in the spec.
	n.CAConfig.SigningCACert, n.CAConfig.SigningCAKey = "", ""
	return n
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// CheckSpec says what is wrong with a swarm's spec; zero values are not.
func CheckSpec(s *swarm.Spec) error {
	if s.Name != "" && s.Name != swarmName {
		return invalid("swarm spec must be named %q", swarmName)
	}
	if e := s.CAConfig.NodeCertExpiry; e != 0 && e < ca.MinExpiry {
		return invalid("minimum certificate expiry time is: %s", ca.MinExpiry)
	}
	switch p := s.Dispatcher.HeartbeatPeriod; {
	case p < 0:
		return invalid("heartbeat time period cannot be a negative duration")
	case p != 0 && p < minHeartbeat:
		return invalid("the dispatcher's heartbeat period must be at least %s, not %s", minHeartbeat, p)
	case p > maxHeartbeat:
		return invalid("the dispatcher's heartbeat period must be at most %s, not %s: nodes that die would never be noticed", maxHeartbeat, p)
	}
	if r := &s.Raft; r.ElectionTick < 0 || r.HeartbeatTick < 0 || r.ElectionTick != 0 && r.ElectionTick <= r.HeartbeatTick {
		return invalid("raft's ElectionTick (%d) must be greater than its HeartbeatTick (%d)", r.ElectionTick, r.HeartbeatTick)
	}
	if s.Raft.SnapshotInterval > maxSnapshotEntries {
		return invalid("a snapshot after %d entries is one never: at most %d", s.Raft.SnapshotInterval, uint64(maxSnapshotEntries))
	}
	if err := validateLabels(s.Labels); err != nil {
		return err
	}
	return ca.CheckExternal(s.CAConfig.ExternalCAs)
}

// CheckInit says what is wrong with a request for a new swarm.
func CheckInit(r *swarm.InitRequest) error {
	if err := CheckSpec(&r.Spec); err != nil {
		return err
	}
	if p := r.DataPathPort; p != 0 && (p < minDataPort || p > maxDataPort) {
		return invalid("Datapath port number is not in valid range (%d-%d) : %d", minDataPort, maxDataPort, p)
	}
	switch r.Availability {
	case "", swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return invalid("invalid Availability: %q", r.Availability)
	}
	return checkPools(r.DefaultAddrPool, or(r.SubnetSize, allocator.DefaultSubnetSize))
}

// checkPools refuses pools from which no network can be given, or the same twice.
func checkPools(pools []netip.Prefix, size uint32) error {
	if len(pools) == 0 {
		pools = []netip.Prefix{allocator.DefaultPool()}
	}
	if len(pools) > maxAddrPools {
		return invalid("%d default address pools, at most %d are accepted", len(pools), maxAddrPools)
	}
	if size > 29 {
		return invalid("subnet size is out of range: %d: it is at most 29, as smaller networks have no room for tasks", size)
	}
	for i, p := range pools {
		switch {
		case !p.IsValid() || !p.Addr().Is4():
			return invalid("invalid base pool %s: it must be an IPv4 subnet in CIDR format", p)
		case int(size) < p.Bits():
			return invalid("invalid CIDR: %q. Subnet size is too small for pool: %d", p, size)
		}
		for _, q := range pools[:i] {
			if p.Overlaps(q) {
				return invalid("default address pools overlap: %s and %s", q, p)
			}
		}
	}
	return nil
}
