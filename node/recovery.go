package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	fetchTimeout = 5 * time.Second
	// missPause is the pause after a manager that could not be asked; nothingPause
	// bounds the one after others, which doubles each time.
	missPause    = time.Second
	nothingPause = 30 * time.Second
	// othersEvery is how often a manager asks one that it does not reach.
	othersEvery = 3 * time.Second
)

// recovery is for a node that was away while the swarm's root was rotated: the
// managers don't take its certificate any more, but have signed another one for it.
// It asks for that as somebody without certificate, where a session failed, and
// takes it if this node's own root vouches for manager and certificate.
type recovery struct {
	creds *rpc.Credentials
	vault *vault
	// renewed is told that there is another certificate.
	renewed func()
	log     *slog.Logger
	asks    chan string // capacity 1: the address of a manager to ask
}

func newRecovery(creds *rpc.Credentials, v *vault, renewed func(), log *slog.Logger) *recovery {
	return &recovery{creds: creds, vault: v, renewed: renewed, log: log, asks: make(chan string, 1)}
}

// failed is told that a manager gave no session. One that answered knows the
// node's certificate.
func (r *recovery) failed(addr string, err error) {
	if !rpc.Answered(err) {
		r.ask(addr)
	}
}

// ask has a manager be asked soon. It does not block.
func (r *recovery) ask(addr string) {
	select {
	case r.asks <- addr:
	default:
	}
}

// run blocks until ctx ends.
func (r *recovery) run(ctx context.Context) error {
	pause, said := missPause, ""
	for {
		select {
		case addr := <-r.asks:
			taken, err := r.recover(ctx, addr)
			switch {
			case ctx.Err() != nil:
				return nil
			case taken:
				pause, said = missPause, ""
				continue
			case api.Is(err, api.Unavailable) || api.Is(err, api.DeadlineExceeded): // nobody is there
				pause = missPause
			case err != nil:
				if text := err.Error(); text != said {
					r.log.Error("this node's certificate is not good for the swarm any more, and there is no way to another one", "manager", addr, "err", err)
					said = text
				}
				pause = min(2*pause, nothingPause)
			default:
				pause = min(2*pause, nothingPause)
			}
		case <-ctx.Done():
			return nil
		}
		t := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// recover takes the certificate that waits at a manager. False without error:
// there is none.
func (r *recovery) recover(ctx context.Context, addr string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	old := r.creds.Keys()
	cert, err := fetchWaiting(ctx, addr, old)
	if err != nil || len(cert) == 0 || bytes.Equal(cert, old.Cert) {
		return false, err
	}
	keys, err := old.Waiting(cert, time.Now())
	if err != nil {
		return false, fmt.Errorf("%w: %s", err, joinAgain(old.Identity().NodeID))
	}
	if keys == nil {
		return false, nil
	}
	if taken, err := r.vault.replace(old, keys); err != nil || !taken {
		return false, err
	}
	r.log.Warn("the swarm's root CA was rotated while this node was away; it has fetched the certificate that waited for it", "manager", addr, "role", keys.Identity().Role, "expires", keys.Leaf().NotAfter)
	r.renewed()
	return true, nil
}

// fetchWaiting asks a manager that this node's root vouches for which certificate
// the node has. Empty: none that is settled. Unavailable: the manager can't be
// asked now.
func fetchWaiting(ctx context.Context, addr string, old *ca.Keys) ([]byte, error) {
	config := rpc.JoinConfig(old.Root)
	verify := config.VerifyConnection
	var stranger atomic.Pointer[error]
	config.VerifyConnection = func(s tls.ConnectionState) error {
		err := verify(s)
		if err != nil {
			stranger.Store(&err)
		}
		return err
	}
	conn, err := rpc.Dial(addr, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	id := old.Identity().NodeID
	s, err := swarmpb.NewNodeCAClient(conn).NodeCertificateStatus(ctx, &swarmpb.NodeCertificateStatusRequest{NodeId: id})
	switch unknown := stranger.Load(); {
	case err == nil:
	case unknown != nil:
		return nil, api.Errorf(api.PermissionDenied, "%w: the root CA that this node knows does not vouch for it: the swarm's root was rotated more than %d times while this node was away, or another swarm is there: %s", *unknown, ca.Remembered, joinAgain(id))
	case api.Is(err, api.NotFound):
		return nil, api.Errorf(api.NotFound, "%w: the node was removed: `docker swarm leave --force` here, then join again", err)
	default:
		return nil, err
	}
	if state := s.GetStatus().GetState(); state != swarmpb.IssuanceStatus_ISSUED && state != swarmpb.IssuanceStatus_ROTATE {
		return nil, nil
	}
	return s.GetCertificate().GetCertificate(), nil
}

func joinAgain(id string) string {
	return fmt.Sprintf("remove this node and join it again: `docker node rm --force %s` on a manager, `docker swarm leave --force` here, then `docker swarm join`", id)
}

// replace is take, unless the node has another certificate than old by now.
func (v *vault) replace(old, keys *ca.Keys) (bool, error) {
	v.writing.Lock()
	defer v.writing.Unlock()
	now := v.creds.Keys()
	if !bytes.Equal(now.Cert, old.Cert) {
		return false, nil
	}
	kek, _ := v.key()
	return true, v.save(keys.WithLogKeys(now.LogKeys()), kek)
}

// askOthers has managers that this one does not reach be asked whether a
// certificate waits: those that went on without it, with another root, don't take
// its calls, while its own agent finds nothing amiss here.
func (p *managerPart) askOthers(ctx context.Context) error {
	t := time.NewTicker(othersEvery)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		var lost []raftnode.Member
		for _, m := range p.raft.Status().Members {
			if m.ID != p.state.RaftID && !p.mesh.Reachable(m.ID) {
				lost = append(lost, m)
			}
		}
		if len(lost) > 0 {
			p.recovery.ask(lost[rand.IntN(len(lost))].Address)
		}
	}
}
