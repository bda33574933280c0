package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
)

// renewing is a renewal whose manager only pretends.
type renewing struct {
	renewal
	t *testing.T

	mu      sync.Mutex
	root    *ca.Root       // that signs
	role    swarm.NodeRole // what it gives
	fail    bool
	when    []time.Time   // it was asked
	off     time.Duration // by which the node's wall clock is wrong
	behind  time.Duration // by which the managers' is
	wish    wish
	changed chan struct{}
}

// renews runs a test with a renewal that runs, in a bubble of time.
func renews(t *testing.T, test func(*renewing)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		root := bringRoot(t)
		r := &renewing{t: t, root: root, role: swarm.NodeRoleWorker, changed: make(chan struct{})}
		if err := keyFiles(dir).Save(r.issue(root, root), nil); err != nil {
			t.Fatal(err)
		}
		creds := &rpc.Credentials{}
		v, err := openVault(keyFiles(dir), nil, creds)
		if err != nil {
			t.Fatal(err)
		}
		r.renewal = renewal{creds: creds, vault: v, log: slog.New(slog.NewTextHandler(t.Output(), nil)), renewed: func() {}, now: r.wall}
		r.wanted = func() (wish, <-chan struct{}) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.wish, r.changed
		}
		r.request = func(context.Context) error {
			r.mu.Lock()
			r.when = append(r.when, time.Now())
			fail, root := r.fail, r.root
			r.mu.Unlock()
			if fail {
				return errors.New("no manager answers")
			}
			return r.take(r.issue(root, r.creds.Keys().Root))
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.run(ctx) }()
		synctest.Wait()
		test(r)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// wall is the node's wall clock.
func (r *renewing) wall() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.off).Round(0)
}

// issue makes keys of a certificate that root signs, for a node that trusts trust.
func (r *renewing) issue(root, trust *ca.Root) *ca.Keys {
	r.t.Helper()
	key, csr, err := ca.NewRequest()
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	role, at := r.role, time.Now().Add(-r.behind)
	r.mu.Unlock()
	cert, err := root.Issue(csr, ca.Identity{NodeID: "n", Role: role, Cluster: "c"}, 24*time.Hour, at)
	if err != nil {
		r.t.Fatal(err)
	}
	keys, err := ca.NewKeys(trust, cert, key, at)
	if err != nil {
		r.t.Fatal(err)
	}
	return keys
}

// say is what a manager says.
func (r *renewing) say(w wish) {
	r.mu.Lock()
	r.wish = w
	close(r.changed)
	r.changed = make(chan struct{})
	r.mu.Unlock()
	synctest.Wait()
}

// set changes what the manager does.
func (r *renewing) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// took returns when the manager was asked since the last call.
func (r *renewing) took() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	when := r.when
	r.when = nil
	return when
}

func (r *renewing) asked(want int, what string) {
	r.t.Helper()
	if got := len(r.took()); got != want {
		r.t.Errorf("%s: %d requests, want %d", what, got, want)
	}
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestRenewalBetweenHalfAndFourFifths(t *testing.T) {
	renews(t, func(r *renewing) {
		from := time.Now()
		pass(12*time.Hour - time.Second)
		r.asked(0, "in the first half of its life")
		pass(7*time.Hour + 13*time.Minute)
		r.asked(1, "before four fifths")
		if leaf := r.creds.Keys().Leaf(); leaf.NotAfter.Before(from.Add(36 * time.Hour)) {
			t.Errorf("in use until %v", leaf.NotAfter)
		}
	})
}

func TestRenewalIsTriedAgain(t *testing.T) {
	renews(t, func(r *renewing) {
		r.set(func() { r.fail = true })
		pass(20 * time.Hour)
		tries := r.took()
		if len(tries) < 24 || len(tries) > 18*60 {
			t.Fatalf("%d tries", len(tries))
		}
		for i := 1; i < len(tries); i++ {
			if d := tries[i].Sub(tries[i-1]); d < 30*time.Second || d > time.Minute {
				t.Fatalf("%v between two tries", d)
			}
		}
		r.set(func() { r.fail = false })
		pass(time.Minute)
		r.asked(1, "when a manager answers again")
	})
}

// Clocks that are set neither keep a certificate from being renewed in time nor have it
// renewed again and again.
func TestRenewalWithClocksThatJump(t *testing.T) {
	const day = 24 * time.Hour
	renews(t, func(r *renewing) {
		r.set(func() { r.off = -400 * day })
		pass(20 * time.Hour)
		r.asked(0, "a certificate that by this node's clock is not good yet")
		r.set(func() { r.off = 0 })
		pass(time.Hour)
		r.asked(1, "when the clock is right again")
		r.set(func() { r.off = 400 * day })
		pass(2 * time.Hour)
		if n := len(r.took()); n == 0 || n > 13 {
			t.Errorf("%d times within two hours, by a clock at which each certificate has expired", n)
		}
		r.set(func() { r.off = 0 })
		pass(time.Hour)
		r.took()
		r.set(func() { r.behind = 30 * time.Hour })
		pass(20 * time.Hour)
		if leaf := r.creds.Keys().Leaf(); leaf.NotAfter.Before(time.Now()) {
			t.Errorf("it took a certificate that had expired at %v", leaf.NotAfter)
		}
		r.set(func() { r.behind = 0 })
		r.took()
		pass(time.Minute)
		r.asked(1, "when the managers' clock is right again")
	})
}

func TestRenewalWhenAsked(t *testing.T) {
	renews(t, func(r *renewing) {
		n := &api.Node{}
		r.say(wish{role: swarm.NodeRoleWorker, rotate: n})
		r.asked(1, "at once")
		pass(time.Hour)
		r.say(wish{role: swarm.NodeRoleWorker, rotate: n})
		r.asked(0, "for what was done")
		r.set(func() { r.fail = true })
		r.say(wish{role: swarm.NodeRoleWorker, rotate: &api.Node{}})
		pass(10 * time.Second)
		if tries := len(r.took()); tries < 3 || tries > 8 {
			t.Errorf("%d tries in ten seconds", tries)
		}
		// A manager that died had issued one, and its successor asks no more.
		r.say(wish{role: swarm.NodeRoleWorker})
		r.took()
		r.set(func() { r.fail = false })
		pass(10 * time.Second)
		r.asked(1, "when a manager answers, though nobody asks any more")
		r.set(func() { r.fail = true })
		r.say(wish{role: swarm.NodeRoleWorker, rotate: &api.Node{}})
		pass(time.Hour)
		r.took()
		r.set(func() { r.fail = false })
		pass(time.Minute)
		r.asked(1, "when a manager answers again")
		r.set(func() { r.role = swarm.NodeRoleManager })
		r.say(wish{role: swarm.NodeRoleManager})
		r.asked(1, "for another role")
		if got := r.creds.Keys().Identity().Role; got != swarm.NodeRoleManager {
			t.Errorf("it is a %s", got)
		}
	})
}

func TestRootIsTakenOver(t *testing.T) {
	renews(t, func(r *renewing) {
		trusts := func(want ...*ca.Root) bool {
			var pem []byte
			for _, w := range want {
				pem = append(pem, w.CertPEM()...)
			}
			return string(pem) == string(r.creds.Keys().Root.CertPEM())
		}
		old, next := r.root, bringRoot(t)
		r.say(wish{root: next.CertPEM()})
		if !trusts(old) {
			t.Error("it took a root that its own certificate is not of: it would shut itself out")
		}
		r.say(wish{root: append(old.CertPEM()[:len(old.CertPEM()):len(old.CertPEM())], next.CertPEM()...)})
		if !trusts(old, next) {
			t.Error("it does not trust both")
		}
		r.set(func() { r.root = next })
		r.say(wish{root: r.creds.Keys().Root.CertPEM(), rotate: &api.Node{}})
		r.asked(1, "asked to renew")
		r.say(wish{root: next.CertPEM()})
		if !trusts(next) {
			t.Error("it does not trust the new root alone")
		}
		r.say(wish{root: []byte("nonsense")})
		if !trusts(next) {
			t.Error("it took nonsense")
		}
		stored, err := r.vault.files.Load(nil, time.Now())
		if err != nil || string(stored.Root.CertPEM()) != string(next.CertPEM()) {
			t.Errorf("on disk: %v", err)
		}
	})
}

// A manager that takes a node's certificate no more may still have a session with
// it, from before: that its renewal fails has to be noticed too.
func TestFailedRenewalIsTold(t *testing.T) {
	creds := &rpc.Credentials{}
	root := bringRoot(t)
	dir := keyFiles(t.TempDir())
	if err := dir.Save((&renewing{t: t, role: swarm.NodeRoleWorker}).issue(root, root), nil); err != nil {
		t.Fatal(err)
	}
	v, err := openVault(dir, nil, creds)
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, told := nobody.Addr().String(), ""
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	r := renewal{now: time.Now,
		creds: creds, vault: v, failed: func(addr string, _ error) { told = addr },
		dial: func(context.Context) (*grpc.ClientConn, string, error) {
			conn, err := rpc.DialManager(addr, creds)
			return conn, addr, err
		},
	}
	if err := r.renew(t.Context()); !api.Is(err, api.Unavailable) || told != addr {
		t.Errorf("%v, told %q; want a failure of %s", err, told, addr)
	}
}
