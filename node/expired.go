package node

import (
	"context"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/issuer"
	"github.com/legion-swarm/legion/store"
)

// reviveEvery is how often a leader looks whether its own certificate has expired.
const reviveEvery = time.Minute

// revive gives a leader whose certificate has expired a new one: it has the
// root's key, but nobody, itself included, takes its calls any more. So it is
// with a swarm of one manager that slept for months, or whose clock jumped.
func (p *managerPart) revive(ctx context.Context) error {
	for {
		if leaf := p.creds.Keys().Leaf(); time.Now().After(leaf.NotAfter) {
			if err := p.signOwn(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				p.log.Error("this manager's certificate has expired, and it can't sign a new one", "expired", leaf.NotAfter, "err", err)
			} else {
				p.log.Warn("this manager's certificate had expired; it signed a new one", "expired", leaf.NotAfter)
			}
		}
		t := time.NewTimer(reviveEvery)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

func (p *managerPart) signOwn(ctx context.Context) error {
	key, csr, err := ca.NewRequest()
	if err != nil {
		return err
	}
	old := p.creds.Keys()
	var cert []byte
	_, err = p.store.Update(ctx, func(tx *store.Tx) error {
		n := store.Get[*api.Node](tx, p.state.NodeID)
		if n == nil {
			return api.Errorf(api.NotFound, "this node is not part of the swarm")
		}
		for c := range store.List[*api.Cluster](tx) {
			asked := *n
			asked.Certificate = api.Certificate{Role: old.Identity().Role, CSR: csr, State: api.CertificateRenew, CN: n.ID}
			signed := issuer.Sign(c, &asked, time.Now())
			if signed.Certificate.State != api.CertificateIssued {
				return api.Errorf(api.Unavailable, "the root CA's key is not in the swarm: %s", signed.Certificate.Err)
			}
			cert = signed.Certificate.Cert
			return store.Put(tx, signed)
		}
		return api.Errorf(api.Unavailable, "this manager does not know the swarm")
	})
	if err != nil {
		return err
	}
	keys, err := ca.NewKeys(old.Root, cert, key, time.Now())
	if err != nil {
		return err
	}
	return p.vault.take(keys)
}
