package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	// joinTimeout bounds how long "swarm join" waits, as Docker's.
	joinTimeout = 20 * time.Second
	maxRemotes  = 64
	// askPause is how long after a manager that can't serve now the next try is.
	askPause = 100 * time.Millisecond

	joinGoesOn = "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \"docker info\" command to see the current swarm status of your node."
)

// SwarmJoin makes this node a member of the swarm that the token is of: as a
// worker or a manager, as the token says. When it returns an error, the node is
// no member, except after a timeout that says so.
func (s *swarmNode) SwarmJoin(ctx context.Context, r *swarm.JoinRequest) error {
	if !s.changing.TryLock() {
		return api.Errorf(api.Unavailable, "the node is joining or leaving a swarm at this moment")
	}
	defer s.changing.Unlock()
	if cur, err := s.current(); cur != nil || err != nil {
		return api.Errorf(api.Unavailable, "%s", inSwarm)
	}
	defer s.begins()()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	j, err := newJoin(r)
	if err != nil {
		return err
	}
	state, err := s.joinState(r, j.remotes)
	if err != nil {
		return err
	}
	keys, from, err := j.keys(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return api.Errorf(api.DeadlineExceeded, "Timeout was reached before node joined; nothing was changed on this node: %w", err)
		}
		return err
	}
	state.NodeID, state.ClusterID = keys.Identity().NodeID, keys.Identity().Cluster
	state.Managers = j.managers()
	return s.take(ctx, state, keys, from)
}

// take puts a membership with its keys, which the manager at from gave, on disk,
// begins it and waits until the
// managers have taken the node in.
func (s *swarmNode) take(ctx context.Context, state *membership, keys *ca.Keys, from string) error {
	undo := func(err error) error { return errors.Join(err, forget(s.dir)) }
	cfg := s.member(state, nil, false)
	if keys.Identity().Role == swarm.NodeRoleManager {
		var err error
		if cfg.kek, err = unlockKeyFrom(ctx, from, keys); err != nil {
			return err
		}
		keys = withFirstLogKey(keys)
	}
	if err := keyFiles(s.dir).Save(keys, cfg.kek); err != nil {
		return undo(err)
	}
	m, err := openMember(cfg)
	if err != nil {
		return undo(err)
	}
	r := s.begin(m)
	if err = r.taken(ctx); err == nil {
		err = r.serves(ctx)
	}
	if api.Is(err, api.DeadlineExceeded) {
		err = api.Errorf(api.DeadlineExceeded, "%s", joinGoesOn)
		return errors.Join(err, r.keep())
	}
	if err == nil {
		err = r.keep()
	}
	if err != nil {
		s.end(agent.ErrLeaving)
		s.settle()
		return undo(err)
	}
	return nil
}

// serves waits, on a manager, until that knows the swarm.
func (r *running) serves(ctx context.Context) error {
	p := r.managing()
	if p == nil {
		return nil
	}
	select {
	case <-p.founded:
		return nil
	case err := <-p.refused:
		return err
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return api.Errorf(api.DeadlineExceeded, "the new manager does not know the swarm yet: %w", ctx.Err())
	}
}

// joinState settles this node's addresses.
func (s *swarmNode) joinState(r *swarm.JoinRequest, remotes []string) (*membership, error) {
	host, err := hostInterfaces()
	if err != nil {
		return nil, err
	}
	state := &membership{}
	if state.ListenAddr, err = resolveListen(r.ListenAddr, host); err != nil {
		return nil, err
	}
	advertise := r.AdvertiseAddr
	if advertise == "" && s.advertise == "" {
		if h, _, err := net.SplitHostPort(state.ListenAddr); err == nil && net.ParseIP(h).IsUnspecified() {
			advertise = towards(remotes[0])
		}
	}
	if state.AdvertiseAddr, err = resolveAdvertise(advertise, s.advertise, state.ListenAddr, host); err != nil {
		return nil, err
	}
	if r.DataPathAddr != "" {
		if state.DataPathAddr, err = resolveDataPath(r.DataPathAddr, host); err != nil {
			return nil, err
		}
	}
	return state, nil
}

// towards returns this host's address on the way to another; empty when there is
// no way. Nothing is sent.
func towards(addr string) string {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return ""
	}
	defer c.Close() //nolint:errcheck // nothing was sent
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	if err != nil {
		return ""
	}
	return host
}

// joining is a request to become a member.
type joining struct {
	token        ca.Token
	text         string // the token, as it was given
	remotes      []string
	availability swarm.NodeAvailability
}

func newJoin(r *swarm.JoinRequest) (*joining, error) {
	if err := checkListen(r.ListenAddr); err != nil {
		return nil, err
	}
	switch {
	case len(r.RemoteAddrs) == 0:
		return nil, api.Errorf(api.Invalid, "at least 1 RemoteAddr is required to join")
	case len(r.RemoteAddrs) > maxRemotes:
		return nil, api.Errorf(api.Invalid, "%d remote addresses are given; at most %d are tried", len(r.RemoteAddrs), maxRemotes)
	case r.JoinToken == "":
		return nil, api.Errorf(api.Invalid, "A valid join token is necessary to join this cluster: `docker swarm join-token worker` on a manager shows it")
	}
	switch r.Availability {
	case "", swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return nil, api.Errorf(api.Invalid, "invalid Availability: %q", r.Availability)
	}
	token, err := ca.ParseToken(r.JoinToken)
	if err != nil {
		return nil, err
	}
	j := &joining{token: token, text: r.JoinToken, availability: r.Availability}
	for _, addr := range r.RemoteAddrs {
		host, port, err := splitPort(strings.TrimSpace(addr))
		if err == nil && host == "" {
			err = errors.New("the host is missing")
		}
		if err != nil {
			return nil, api.Errorf(api.Invalid, "invalid remote address %q: %w", addr, err)
		}
		j.remotes = append(j.remotes, net.JoinHostPort(host, port))
	}
	return j, nil
}

func (j *joining) managers() []swarm.Peer {
	peers := make([]swarm.Peer, len(j.remotes))
	for i, addr := range j.remotes {
		peers[i].Addr = addr
	}
	return peers
}

// keys gets this node a certificate from the first manager that gives one, and
// says which that is. Those that answer, but can't serve just now, are asked
// again: they may be joining themselves, or electing a leader.
func (j *joining) keys(ctx context.Context) (keys *ca.Keys, from string, err error) {
	for {
		var all error
		again := false
		for _, addr := range j.remotes {
			keys, err := j.keysFrom(ctx, addr)
			if err == nil {
				return keys, addr, nil
			}
			all = errors.Join(all, fmt.Errorf("%s: %w", addr, err))
			if ctx.Err() != nil || !api.Is(err, api.Unavailable) {
				return nil, "", all // the others would say the same
			}
			again = again || rpc.Answered(err)
		}
		if !again {
			return nil, "", all
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return nil, "", all
		}
	}
}

func (j *joining) keysFrom(ctx context.Context, addr string) (*ca.Keys, error) {
	root, err := j.root(ctx, addr)
	if err != nil {
		return nil, err
	}
	conn, err := rpc.Dial(addr, rpc.JoinConfig(root))
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	key, csr, err := ca.NewRequest()
	if err != nil {
		return nil, err
	}
	client := swarmpb.NewNodeCAClient(conn)
	issued, err := client.IssueNodeCertificate(ctx, &swarmpb.IssueNodeCertificateRequest{
		Csr: csr, Token: j.text, Availability: swarmpb.NewAvailability(j.availability),
	})
	if err != nil {
		return nil, err
	}
	cert, err := certificate(ctx, client, issued.GetNodeId(), csr)
	if err != nil {
		return nil, err
	}
	keys, err := ca.NewKeys(root, cert, key, time.Now())
	if err != nil {
		return nil, fmt.Errorf("the certificate that the manager issued: %w; is this node's clock right?", err)
	}
	return keys, nil
}

// root fetches the root's certificate, which anybody may have sent: the token
// tells whether it is the right one.
func (j *joining) root(ctx context.Context, addr string) (*ca.Root, error) {
	conn, err := rpc.Dial(addr, rpc.JoinConfig(nil))
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	answer, err := callRoot(ctx, conn)
	if err != nil {
		return nil, err
	}
	if !j.token.Trusts(answer) {
		return nil, api.Errorf(api.Invalid, "remote CA does not match fingerprint. Expected: %s: the token is of another swarm, or its root was rotated; `docker swarm join-token` on a manager shows the present one", j.token.Digest)
	}
	return ca.ParseRoot(answer, nil)
}

func callRoot(ctx context.Context, conn *grpc.ClientConn) ([]byte, error) {
	answer, err := swarmpb.NewCAClient(conn).GetRootCACertificate(ctx, &swarmpb.GetRootCACertificateRequest{})
	return answer.GetCertificate(), err
}
