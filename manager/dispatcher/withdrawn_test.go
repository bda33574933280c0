package dispatcher

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/store"
	"github.com/legion-swarm/legion/swarmpb"
)

// firstTask is of node n0 in what populate makes.
const firstTask = "0000000000000000000000000"

// parliament is a swarm of nodes n0 to n2, which manager m1 tells, but for n2, which
// m2 does.
type parliament struct {
	t        *testing.T
	store    *store.Store
	managers map[string]*Dispatcher
	ears     map[string]*ear
	hangUp   map[string]func() // ends a node's stream
}

// earshot is how many updates nodes hear before they hang up.
const earshot = 16

func from(ctx context.Context, node string) context.Context {
	return context.WithValue(ctx, nodeKey{}, node)
}

func convene(t *testing.T, confirms func(node string) bool) *parliament {
	t.Helper()
	p := &parliament{t: t, store: newStore(t), managers: map[string]*Dispatcher{}, ears: map[string]*ear{}, hangUp: map[string]func(){}}
	update(t, p.store, func(tx *store.Tx) error {
		if err := populate(tx, 3, 6, swarm.ContainerSpec{}); err != nil {
			return err
		}
		for id, manager := range map[string]string{"n0": "m1", "n1": "m1", "n2": "m2"} {
			n := *store.Get[*api.Node](tx, id)
			n.Session = api.NodeSession{ID: "session" + id, Manager: manager}
			if err := store.Put(tx, &n); err != nil {
				return err
			}
		}
		for _, id := range []string{"m1", "m2"} {
			n := &api.Node{Role: swarm.NodeRoleManager, ManagerAddr: id}
			n.ID, n.Status.State = id, swarm.NodeStateDown // no part of this
			if err := store.Create(tx, n); err != nil {
				return err
			}
		}
		return nil
	})
	listens := map[string]*bufconn.Listener{}
	for _, id := range []string{"m1", "m2"} {
		listens[id] = bufconn.Listen(1 << 16)
	}
	for id := range listens {
		p.manager(id, listens)
	}
	synctest.Wait()
	for node, manager := range map[string]string{"n0": "m1", "n1": "m1", "n2": "m2"} {
		ctx, cancel := context.WithCancel(from(t.Context(), node))
		e := &ear{ctx: ctx, heard: make(chan *swarmpb.EndpointsUpdate, earshot)}
		p.ears[node], p.hangUp[node] = e, cancel
		go func() {
			_ = p.managers[manager].Endpoints(&swarmpb.EndpointsRequest{DataAddr: store.Get[*api.Node](p.store.View(), node).DataAddr, Confirms: confirms(node)}, e)
		}()
	}
	synctest.Wait()
	for _, node := range []string{"n0", "n1", "n2"} {
		if confirms(node) {
			p.confirm(node)
		}
	}
	return p
}

// manager begins one; it ends with the test.
func (p *parliament) manager(id string, listens map[string]*bufconn.Listener) {
	d, err := New(Config{
		Store: p.store, Node: id, Log: slog.New(slog.DiscardHandler),
		Peer: func(ctx context.Context) (ca.Identity, string, bool) {
			node, ok := ctx.Value(nodeKey{}).(string)
			if md, _ := metadata.FromIncomingContext(ctx); !ok && md != nil {
				node, ok = id, true
			}
			return ca.Identity{NodeID: node}, "", ok
		},
		Dial: func(addr string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return listens[addr].DialContext(ctx) }))
		},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	server := grpc.NewServer()
	d.Register(server)
	ctx, cancel := context.WithCancel(p.t.Context())
	served, ran := make(chan struct{}), make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listens[id]) }()
	go func() { defer close(ran); _ = d.Run(ctx) }()
	p.t.Cleanup(func() { cancel(); server.Stop(); <-served; <-ran })
	p.managers[id] = d
}

// last returns the number of what a node has heard last, and forgets it.
func (p *parliament) last(node string) (number uint64) {
	for e := p.ears[node]; len(e.heard) > 0; {
		number = (<-e.heard).GetNumber()
	}
	return number
}

// confirm has a node say that it has acted on what it has heard.
func (p *parliament) confirm(node string) {
	p.t.Helper()
	number := p.last(node)
	if number == 0 {
		p.t.Fatalf("node %s has nothing to confirm", node)
	}
	p.send(node, number)
}

func (p *parliament) send(node string, number uint64) {
	for _, d := range p.managers {
		if _, err := d.Confirm(from(p.t.Context(), node), &swarmpb.ConfirmRequest{Number: number}); err != nil {
			p.t.Error(err)
		}
	}
}

// end has managers want a task of n0 to end.
func (p *parliament) end(task string) {
	update(p.t, p.store, func(tx *store.Tx) error {
		u := *store.Get[*api.Task](tx, task)
		u.DesiredState = swarm.TaskStateShutdown
		return store.Put(tx, &u)
	})
}

// asked has n0 ask; what it is answered comes by the channel.
func (p *parliament) asked() <-chan error {
	answer := make(chan error, 1)
	go func() {
		_, err := p.managers["m1"].Withdrawn(from(p.t.Context(), "n0"), &swarmpb.WithdrawnRequest{})
		answer <- err
	}()
	return answer
}

// settle lets some time pass, much less than nodes have.
func settle() {
	time.Sleep(withdrawLimit / 10)
	synctest.Wait()
}

func (p *parliament) waits(why string, answer <-chan error) {
	p.t.Helper()
	settle()
	select {
	case err := <-answer:
		p.t.Errorf("%s: answered %v", why, err)
	default:
	}
}

func everybody(string) bool { return true }

// A task's node hears that it is in nobody's lists when all nodes have said so,
// whichever manager tells them; from others it was not heard what they did before.
func TestWithdrawnWhenAllHaveConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := convene(t, everybody)
		if err := <-p.asked(); err != nil {
			t.Error("nothing is to end:", err)
		}
		p.end(firstTask)
		answer := p.asked()
		p.waits("nobody has confirmed", answer)
		stale := uint64(1)
		p.send("n1", stale)
		p.confirm("n0")
		p.confirm("n2")
		p.waits("n1 has not confirmed", answer)
		p.confirm("n1")
		if err := <-answer; err != nil {
			t.Error(err)
		}
		if err := <-p.asked(); err != nil {
			t.Error("asked again:", err)
		}
		p.end("0000000000000000000000003")
		answer = p.asked()
		settle()
		p.confirm("n0")
		p.confirm("n1")
		p.waits("n2, which another manager tells, has not confirmed", answer)
		p.confirm("n2")
		if err := <-answer; err != nil {
			t.Error(err)
		}
	})
}

// What a node has not even been told yet is not confirmed by what it was told before.
func TestWithdrawnIsNotSaidOfWhatIsYetToBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := convene(t, everybody)
		p.ears["n1"].heard = make(chan *swarmpb.EndpointsUpdate) // it takes nothing
		p.end(firstTask)
		settle()
		p.end("0000000000000000000000003")
		answer := p.asked()
		settle()
		p.confirm("n0")
		p.confirm("n2")
		first := (<-p.ears["n1"].heard).GetNumber()
		p.send("n1", first)
		p.waits("n1 has confirmed the first", answer)
		p.send("n1", (<-p.ears["n1"].heard).GetNumber())
		if err := <-answer; err != nil {
			t.Error(err)
		}
	})
}

// A node that says nothing is waited for, but not for ever, and named; one that is
// told nothing any more, or has never said anything, is not.
func TestWithdrawnWaitsForNobodyForLong(t *testing.T) {
	for _, node := range []string{"n1", "n2"} { // whichever manager tells it
		t.Run("silent "+node, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := convene(t, everybody)
				p.end(firstTask)
				begin, answer := time.Now(), p.asked()
				settle()
				for _, other := range []string{"n0", "n1", "n2"} {
					if other != node {
						p.confirm(other)
					}
				}
				err := <-answer
				if took := time.Since(begin); took < withdrawLimit || took > withdrawLimit+2*withdrawGap {
					t.Errorf("after %v", took)
				}
				want := "1 nodes have not said that they have taken tasks out which are to end (" + node + ")"
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Error(err)
				}
			})
		})
	}
	t.Run("gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := convene(t, everybody)
			p.end(firstTask)
			answer := p.asked()
			settle()
			p.confirm("n0")
			p.confirm("n2")
			p.hangUp["n1"]()
			if err := <-answer; err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("of an earlier version", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := convene(t, func(node string) bool { return node != "n1" })
			p.end(firstTask)
			settle()
			if n := p.last("n1"); n != 0 {
				t.Errorf("it is told to confirm %d", n)
			}
			p.ears["n1"].heard = make(chan *swarmpb.EndpointsUpdate) // it takes no more
			for _, task := range []string{"0000000000000000000000003", "0000000000000000000000001"} {
				p.end(task)
				settle()
			}
			answer := p.asked()
			settle()
			p.confirm("n0")
			p.confirm("n2")
			if err := <-answer; err != nil {
				t.Error(err)
			}
		})
	})
}

// A manager answers of what the log has up to an index once it has told that much.
func TestWithdrawnWaitsForTheLog(t *testing.T) {
	o := newOverlays()
	synctest.Test(t, func(t *testing.T) {
		o.advanced = make(chan struct{})
		done := make(chan error, 1)
		go func() { done <- o.withdrawn(t.Context(), 7) }()
		o.reached(6)
		synctest.Wait()
		if len(done) > 0 {
			t.Error("it does not wait")
		}
		o.reached(7)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := o.withdrawn(t.Context(), 8); !api.Is(err, api.DeadlineExceeded) || !strings.Contains(err.Error(), "up to 7, and 8 is asked for") {
			t.Error(err)
		}
	})
}
