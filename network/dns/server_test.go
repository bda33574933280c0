package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/legion-swarm/legion/network"
)

// served is a server on loopback, which ends with the test.
type served struct {
	hub      *Hub
	server   *Server
	udp, tcp string
	end      func()
}

func serve(t testing.TB, zones map[string]*network.Zone, r *network.Resolver, dial Dial) *served {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	v := &served{hub: NewHub(dial, slog.New(slog.DiscardHandler)), udp: u.LocalAddr().String(), tcp: l.Addr().String()}
	v.hub.SetZones(zones)
	v.server = v.hub.NewServer(u, l, r, dial)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		v.server.Run(ctx)
	}()
	v.end = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(v.end)
	return v
}

func (v *served) dial(t testing.TB, proto string) net.Conn {
	t.Helper()
	a := v.udp
	if proto == "tcp" {
		a = v.tcp
	}
	c, err := net.Dial(proto, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func framed(m []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
}

func readStream(t testing.TB, c net.Conn) []byte {
	t.Helper()
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestServerBothAtOnce: some resolvers ask for both families by one socket, and
// take the answers in any order.
func TestServerBothAtOnce(t *testing.T) {
	v := serve(t, twoZones(), &network.Resolver{Zones: []string{"n1"}}, nil)
	c := v.dial(t, "udp")
	for range 100 {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			if _, err := c.Write(message(t, "both.", kind, 0)); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]bool{}
		buf := make([]byte, 512)
		for range 2 {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			got[told(t, buf[:n])] = true
		}
		if !got["Success 10.0.1.5"] || !got["Success fd01::5"] {
			t.Fatal(got)
		}
	}
}

// TestServerStream: several queries on one connection, in pieces and at once.
func TestServerStream(t *testing.T) {
	v := serve(t, twoZones(), &network.Resolver{Zones: []string{"n1"}}, nil)
	c := v.dial(t, "tcp")
	m := framed(message(t, "web.", dnsmessage.TypeA, 0))
	for _, b := range [][]byte{m[:1], m[1:7], m[7:], append(append([]byte{}, m...), m...)} {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if got := told(t, readStream(t, c)); got != "Success 10.0.1.2" {
			t.Fatal(got)
		}
	}
	// What is too long to be a query ends the connection.
	if _, err := c.Write([]byte{0xff, 0xff, 0, 0}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("goes on")
	}
}

// TestServerTooManyConnections: one sandbox can't have more than its share; it
// has it again when others end.
func TestServerTooManyConnections(t *testing.T) {
	v := serve(t, twoZones(), &network.Resolver{Zones: []string{"n1"}}, nil)
	m := framed(message(t, "web.", dnsmessage.TypeA, 0))
	var open []net.Conn
	for range maxConns {
		c := v.dial(t, "tcp")
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
		readStream(t, c)
		open = append(open, c)
	}
	if over, err := net.Dial("tcp", v.tcp); err == nil { // it may be refused at once
		defer over.Close()
		if n, err := over.Read(make([]byte, 1)); err == nil {
			t.Errorf("got %d bytes", n)
		}
	}
	for _, c := range open {
		c.Close()
	}
	for v.server.conns.Load() > 0 {
		runtime.Gosched()
	}
	c := v.dial(t, "tcp")
	if _, err := c.Write(m); err != nil {
		t.Fatal(err)
	}
	readStream(t, c)
}

// TestServerEnds with queries under way, and leaves no goroutine.
func TestServerEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	asked := make(chan struct{}, 20)
	silent := func(ctx context.Context, proto string, _ netip.AddrPort) (net.Conn, error) {
		ours, theirs := net.Pipe()
		context.AfterFunc(ctx, func() { theirs.Close() })
		go func() {
			_, _ = theirs.Read(make([]byte, maxQuery))
			asked <- struct{}{}
		}()
		return ours, nil
	}
	v := serve(t, twoZones(), &network.Resolver{Servers: []netip.AddrPort{netip.MustParseAddrPort(dead)}}, silent)
	u, c := v.dial(t, "udp"), v.dial(t, "tcp")
	m := message(t, "example.com.", dnsmessage.TypeA, 0)
	for range 10 {
		if _, err := u.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(framed(m)); err != nil {
		t.Fatal(err)
	}
	for range 11 {
		<-asked
	}
	start := time.Now()
	v.end()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if v.server.slots.Load() != 0 || len(v.hub.slots) != 0 {
		t.Error("queries are still counted")
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// TestServerChanges: no answer is older than the change, whoever asks meanwhile.
func TestServerChanges(t *testing.T) {
	zones := func(i int) map[string]*network.Zone {
		names := map[string][]netip.Addr{"web": {netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}}
		for k := range 1000 {
			names[fmt.Sprintf("name%d", k)] = names["web"]
		}
		return map[string]*network.Zone{"n": {ID: "n", Name: "net", Names: names}}
	}
	v := serve(t, zones(0), &network.Resolver{Zones: []string{"n"}}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		c := v.dial(t, "udp")
		m := message(t, "name7.", dnsmessage.TypeA, 0)
		wg.Go(func() {
			buf := make([]byte, 512)
			for ctx.Err() == nil {
				_, _ = c.Write(m)
				_, _ = c.Read(buf)
			}
		})
	}
	c := v.dial(t, "udp")
	m := message(t, "web.", dnsmessage.TypeA, 0)
	buf := make([]byte, 512)
	for i := range 100 {
		v.hub.SetZones(zones(i))
		if _, err := c.Write(m); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := told(t, buf[:n]), fmt.Sprintf("Success 10.0.%d.%d", i>>8, i&255); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	cancel()
	wg.Wait()
}

// BenchmarkServer asks by eight sockets at once; see also BenchmarkResolver of
// package linux.
func BenchmarkServer(b *testing.B) {
	v := serve(b, twoZones(), &network.Resolver{Zones: []string{"n1"}}, nil)
	for _, proto := range []string{"udp", "tcp"} {
		b.Run(proto, func(b *testing.B) {
			m := message(b, "web.", dnsmessage.TypeA, 0)
			if proto == "tcp" {
				m = framed(m)
			}
			b.SetParallelism(max(1, 8/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				c := v.dial(b, proto)
				buf := make([]byte, 512)
				for pb.Next() {
					if _, err := c.Write(m); err != nil {
						b.Error(err)
						return
					}
					if _, err := c.Read(buf); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}
