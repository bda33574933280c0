package node

import (
	"context"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/agent"
	"github.com/legion-swarm/legion/agent/exec"
	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/network"
	"github.com/legion-swarm/legion/rpc"
)

// workerPart is what every member of a swarm has: an agent that runs tasks, and
// a certificate that stays fresh.
type workerPart struct {
	dir   string // <data-root>/swarm
	creds *rpc.Credentials
	vault *vault
	exec  exec.Executor
	// overlays is told of endpoints on other nodes; nil: nobody is.
	overlays agent.Overlays
	// networks has containers attached by managers; nil: none are.
	networks *network.Networks
	// managers is told how it goes with them; dial connects to one of them.
	managers *agent.Managers
	dial     func(context.Context) (*grpc.ClientConn, string, error)
	// wanted is renewal's.
	wanted func() (wish, <-chan struct{})
	// notice is told what managers say of the swarm; renewed, that the node has
	// another certificate. Both return at once.
	notice  func(agent.Notice)
	renewed func()
	// recovery gets the node a certificate when managers don't take its own.
	recovery *recovery
	log      *slog.Logger
}

// run blocks until ctx ends (nil) or a part fails.
func (w *workerPart) run(ctx context.Context) error {
	a, err := agent.New(agent.Config{
		Executor: w.exec, Overlays: w.overlays, Managers: w.managers, Dial: w.dial, Dir: filepath.Join(w.dir, workerDir), Log: w.log.With("component", "agent"),
		Notify: w.notice, Failed: w.recovery.failed, TLSInfo: func() swarm.TLSInfo { return tlsInfo(w.creds.Keys()) },
	})
	if err != nil {
		return err
	}
	r := renewal{creds: w.creds, vault: w.vault, dial: w.dial, wanted: w.wanted, failed: w.recovery.failed, log: w.log, now: time.Now}
	r.request = r.renew
	r.renewed = func() {
		w.renewed()
		a.Redescribe()
	}
	if w.networks != nil {
		w.networks.SetSwarm(attacher{a})
		defer w.networks.SetSwarm(nil)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := a.Run(ctx)
		if api.Is(err, api.NotFound) {
			return api.Errorf(api.NotFound, "%w; run `docker swarm leave --force` here, then join again", err)
		}
		return named("agent", err)
	})
	g.Go(func() error { return named("certificate", r.run(ctx)) })
	g.Go(func() error { return named("certificate recovery", w.recovery.run(ctx)) })
	return g.Wait()
}

// tlsInfo is what a node says of its certificate.
func tlsInfo(k *ca.Keys) swarm.TLSInfo {
	subject, key := k.Issuer()
	return swarm.TLSInfo{TrustRoot: string(k.Root.CertPEM()), CertIssuerSubject: subject, CertIssuerPublicKey: key}
}
