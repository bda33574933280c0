package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/legion-swarm/legion/network/crypt"
	"github.com/legion-swarm/legion/network/dns"
)

// holder has what a keeper holds, and does what requests ask for. It is used by one
// goroutine.
type holder struct {
	log     *slog.Logger
	threads *threads

	hub       *dns.Hub
	zones     zonesState
	resolvers map[string]*resolver // by sandbox

	node     *crypt.Node
	settings Settings
	peers    map[string]Peers // by overlay
	taps     map[string]Tap   // by overlay
	cryptor  *cryptor         // nil: there is no socket
}

// resolver is what answers in a sandbox.
type resolver struct {
	Resolver
	server *dns.Server
	done   chan struct{}
}

func newHolder(log *slog.Logger) (*holder, error) {
	t, err := newThreads()
	if err != nil {
		return nil, err
	}
	outside := func(ctx context.Context, proto string, server netip.AddrPort) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, proto, server.String())
	}
	return &holder{
		log: log, threads: t, hub: dns.NewHub(outside, log), resolvers: map[string]*resolver{},
		node: crypt.NewNode(time.Now), peers: map[string]Peers{}, taps: map[string]Tap{},
	}, nil
}

// idle reports whether it holds nothing that counts.
func (h *holder) idle() bool { return len(h.resolvers) == 0 && h.cryptor == nil }

// held returns what it holds, in parts.
func (h *holder) held() []*held {
	all := &held{Taps: slices.Collect(maps.Values(h.taps))}
	if h.cryptor != nil {
		all.At = h.cryptor.at
	}
	for _, r := range h.resolvers {
		all.Resolvers = append(all.Resolvers, r.Resolver)
	}
	parts := []*held{all}
	for _, d := range peersBetween(nil, h.peers) {
		parts = append(parts, &held{At: all.At, Peers: d})
	}
	return parts
}

// do does what a request asks for. It takes the files.
func (h *holder) do(r *request, files []int) error {
	defer func() { closeFiles(files) }()
	take := func(n int) (l []int, err error) {
		if len(files) < n {
			return nil, fmt.Errorf("a request has %d files, not %d", len(files), n)
		}
		l, files = files[:n:n], files[n:]
		return l, nil
	}
	for _, id := range r.Forget {
		h.forget(id)
	}
	if n := len(r.Answer); n > 0 {
		l, err := take(2 * n)
		if err != nil {
			return err
		}
		if err := h.answer(r.Answer, l); err != nil {
			return err
		}
	}
	if err := h.resolve(r.Resolve); err != nil {
		return err
	}
	if r.Zones != nil && h.zones.apply(r.Zones) {
		h.hub.SetZones(h.zones.is)
	}
	if r.CloseCrypt {
		h.closeCrypt()
	}
	if r.OpenCrypt != nil {
		if err := h.openCrypt(r.OpenCrypt.At); err != nil {
			return err
		}
	}
	if err := h.protect(r); err != nil {
		return err
	}
	if r.DropTap != "" {
		h.dropTap(r.DropTap)
	}
	if r.Tap != nil {
		l, err := take(1)
		if err != nil {
			return err
		}
		return h.tap(r.Tap, l[0])
	}
	return nil
}

func (h *holder) forget(id string) {
	if r := h.resolvers[id]; r != nil {
		r.server.Close()
		<-r.done
		delete(h.resolvers, id)
	}
}

// answer has names answered at sockets, two for each resolver, which it takes.
func (h *holder) answer(l []Resolver, files []int) error {
	for i := range l {
		udp, tcp, err := socketsOf(files[2*i], files[2*i+1])
		if err == nil && (l[i].Sandbox == "" || l[i].Config == nil) {
			err = errors.Join(errors.New("it is not said how it resolves"), udp.Close(), tcp.Close())
		}
		if err != nil {
			closeFiles(files[2*i+2:])
			return fmt.Errorf("sockets of the resolver in %s: %w", l[i].Sandbox, err)
		}
		h.forget(l[i].Sandbox)
		r := &resolver{Resolver: l[i], done: make(chan struct{})}
		r.server = h.hub.NewServer(udp, tcp, l[i].Config, h.threads.inside(udp))
		h.resolvers[r.Sandbox] = r
		go func() {
			defer close(r.done)
			r.server.Run(context.Background())
		}()
	}
	return nil
}

// socketsOf takes the files of a datagram socket and a listener.
func socketsOf(udp, tcp int) (*net.UDPConn, *net.TCPListener, error) {
	a, b := os.NewFile(uintptr(udp), "udp"), os.NewFile(uintptr(tcp), "tcp")
	defer a.Close() //nolint:errcheck // what is kept is a copy
	defer b.Close() //nolint:errcheck // what is kept is a copy
	c, err := net.FilePacketConn(a)
	if err != nil {
		return nil, nil, err
	}
	l, err := net.FileListener(b)
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	u, isUDP := c.(*net.UDPConn)
	t, isTCP := l.(*net.TCPListener)
	if !isUDP || !isTCP {
		return nil, nil, errors.Join(errors.New("they are of other kinds"), c.Close(), l.Close())
	}
	return u, t, nil
}

func (h *holder) resolve(l []Resolver) error {
	for i := range l {
		r := h.resolvers[l[i].Sandbox]
		if r == nil || l[i].Config == nil {
			return fmt.Errorf("nothing answers in %s", l[i].Sandbox)
		}
		r.Config = l[i].Config
		r.server.SetResolver(r.Config)
	}
	return nil
}

func (h *holder) openCrypt(at netip.AddrPort) (err error) {
	if h.cryptor != nil && h.cryptor.at == at {
		return nil
	}
	h.closeCrypt()
	h.cryptor, err = openCryptor(at, h.node, h.log)
	return err
}

func (h *holder) closeCrypt() {
	if h.cryptor != nil {
		h.cryptor.close()
		h.cryptor = nil
		clear(h.taps)
	}
}

// protect changes how packets are protected, and who the other nodes are.
func (h *holder) protect(r *request) error {
	if r.Settings != nil {
		h.settings = *r.Settings
	}
	if r.Peers != nil {
		applyPeers(h.peers, r.Peers)
	}
	if r.Settings == nil && (r.Peers == nil || r.Peers.More) {
		return nil
	}
	c := crypt.Config{Local: h.settings.Local, Keys: h.settings.Keys, Send: h.settings.Send, Networks: make(map[uint32]map[crypt.MAC]netip.Addr, len(h.peers))}
	for _, o := range h.peers {
		c.Networks[o.VNI] = o.Nodes
	}
	if err := h.node.Set(c); err != nil {
		return fmt.Errorf("keys of encrypted networks: %w", err)
	}
	if h.cryptor != nil {
		h.cryptor.poke()
	}
	return nil
}

func (h *holder) dropTap(overlay string) {
	if h.cryptor != nil {
		h.cryptor.drop(overlay)
		delete(h.taps, overlay)
	}
}

// tap takes a device's file.
func (h *holder) tap(t *Tap, file int) error {
	if h.cryptor == nil || t.Overlay == "" {
		closeFiles([]int{file})
		return errors.New("a device has come, and there is no socket")
	}
	if err := h.cryptor.add(t.Overlay, &tap{vni: t.VNI, fd: file}); err != nil {
		delete(h.taps, t.Overlay)
		closeFiles([]int{file})
		return err
	}
	h.taps[t.Overlay] = *t
	return nil
}

func (h *holder) status() *Status {
	return &Status{Counts: h.node.Counts(), Established: h.node.Established()}
}
