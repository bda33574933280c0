package dns

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/legion-swarm/legion/network"
)

// Servers by their address: what each does with a query.
const (
	good    = "192.0.2.1:53" // answers 203.0.113.1
	second  = "192.0.2.2:53" // answers 203.0.113.2
	dead    = "192.0.2.3:53" // says nothing
	slow    = "192.0.2.4:53" // answers 203.0.113.4 after 1.5 s
	failing = "192.0.2.5:53" // SERVFAIL
	refuses = "192.0.2.6:53" // REFUSED
	absent  = "192.0.2.7:53" // can't be reached
	lies    = "192.0.2.8:53" // sends answers to other questions, then one that is right: 203.0.113.8
	none    = "192.0.2.9:53" // NXDOMAIN
	large   = "192.0.2.10:53"
	bare    = "192.0.2.11:53" // SERVFAIL, without the question
)

// outside dials servers that are goroutines. Streams have a length before each
// message.
func outside(t *testing.T) Dial {
	return func(ctx context.Context, proto string, server netip.AddrPort) (net.Conn, error) {
		if server.String() == absent {
			return nil, errors.New("no route")
		}
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		go func() {
			defer theirs.Close()
			buf := make([]byte, 4096)
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			m, stream := buf[:n], proto == "tcp"
			if stream {
				m = m[2:]
			}
			for _, a := range replies(t, server, m) {
				if stream {
					a = append([]byte{byte(len(a) >> 8), byte(len(a))}, a...)
				}
				if _, err := theirs.Write(a); err != nil {
					return
				}
			}
			_, _ = io.Copy(io.Discard, theirs) // until it is closed
		}()
		return ours, nil
	}
}

func replies(t *testing.T, server netip.AddrPort, m []byte) [][]byte {
	var q dnsmessage.Message
	if err := q.Unpack(m); err != nil {
		t.Errorf("a server got %x: %v", m, err)
		return nil
	}
	q.Response, q.Additionals = true, nil
	pack := func(change func(a *dnsmessage.Message)) []byte {
		a := q
		a.Questions = append([]dnsmessage.Question{}, q.Questions...)
		change(&a)
		b, err := a.Pack()
		if err != nil {
			t.Error(err)
		}
		return b
	}
	code := func(c dnsmessage.RCode) func(*dnsmessage.Message) {
		return func(a *dnsmessage.Message) { a.RCode = c }
	}
	address := func(last byte) func(*dnsmessage.Message) {
		return func(a *dnsmessage.Message) {
			h := dnsmessage.ResourceHeader{Name: a.Questions[0].Name, Class: dnsmessage.ClassINET}
			a.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{203, 0, 113, last}}}}
		}
	}
	last := server.Addr().As4()[3]
	switch server.String() {
	case good, second:
		return [][]byte{pack(address(last))}
	case slow:
		time.Sleep(1500 * time.Millisecond)
		return [][]byte{pack(address(last))}
	case failing:
		return [][]byte{pack(code(dnsmessage.RCodeServerFailure))}
	case refuses:
		return [][]byte{pack(code(dnsmessage.RCodeRefused))}
	case none:
		return [][]byte{pack(code(dnsmessage.RCodeNameError))}
	case bare:
		return [][]byte{pack(func(a *dnsmessage.Message) { a.RCode, a.Questions = dnsmessage.RCodeServerFailure, nil })}
	case large:
		return [][]byte{pack(func(a *dnsmessage.Message) {
			for range 100 {
				one := *a
				address(last)(&one)
				a.Answers = append(a.Answers, one.Answers...)
			}
		})}
	case lies:
		return [][]byte{
			nil, []byte("short"),
			pack(func(a *dnsmessage.Message) { a.ID++; address(66)(a) }),
			pack(func(a *dnsmessage.Message) { a.Response = false; address(66)(a) }),
			pack(func(a *dnsmessage.Message) {
				a.Questions[0].Name = dnsmessage.MustNewName("evil.org.")
				address(66)(a)
			}),
			pack(func(a *dnsmessage.Message) { a.Questions[0].Type = dnsmessage.TypeAAAA; address(66)(a) }),
			pack(func(a *dnsmessage.Message) { address(66)(a); a.Questions = nil }),
			pack(func(a *dnsmessage.Message) {
				a.Questions[0].Name = dnsmessage.MustNewName("EXAMPLE.com.") // another case is none
				address(8)(a)
			}),
		}
	}
	return nil
}

// resolved asks servers and returns the answer as told does, and how long it
// took.
func resolved(t *testing.T, s *Server, proto string, size int, servers ...string) (string, time.Duration) {
	t.Helper()
	r := &network.Resolver{}
	for _, a := range servers {
		r.Servers = append(r.Servers, netip.MustParseAddrPort(a))
	}
	s.SetResolver(r)
	start := time.Now()
	out := s.forwarded(t.Context(), proto, message(t, "example.com.", dnsmessage.TypeA, size))
	took := time.Since(start)
	if out == nil {
		return "nothing", took
	}
	var m dnsmessage.Message
	if err := m.Unpack(out); err != nil {
		t.Fatal(err)
	}
	for i := range m.Questions { // as told wants it
		for k := range m.Answers {
			m.Answers[k].Header.Name = m.Questions[i].Name
		}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return told(t, b), took
}

func TestForward(t *testing.T) {
	for _, c := range []struct {
		servers []string
		want    string
		took    time.Duration
	}{
		{[]string{good}, "Success 203.0.113.1", 0},
		{[]string{good, second}, "Success 203.0.113.1", 0},
		{[]string{dead, second}, "Success 203.0.113.2", time.Second},
		{[]string{dead, dead, second}, "Success 203.0.113.2", 2 * time.Second},
		{[]string{slow, dead}, "Success 203.0.113.4", 1500 * time.Millisecond},
		{[]string{slow, second}, "Success 203.0.113.2", time.Second},
		{[]string{failing, refuses, absent, second}, "Success 203.0.113.2", 0},
		{[]string{bare, second}, "Success 203.0.113.2", 0},
		{[]string{failing, dead}, "ServerFailure", allowed},
		{[]string{refuses}, "Refused", 0},
		{[]string{none, second}, "NameError", 0},
		{[]string{absent}, "ServerFailure", 0},
		{[]string{dead}, "ServerFailure", allowed},
	} {
		for _, proto := range []string{"udp", "tcp"} {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{hub: NewHub(outside(t), slog.New(slog.DiscardHandler))}
				if got, took := resolved(t, s, proto, 0, c.servers...); got != c.want || took != c.took {
					t.Errorf("%s by %v: %s after %v, want %s after %v", proto, c.servers, got, took, c.want, c.took)
				}
				s.wg.Wait()
				time.Sleep(2 * time.Second) // until the slow one has ended, too
			})
		}
	}
}

// TestForwardLies: answers to other questions are passed over; on a stream, which
// nobody else can write to, they end it.
func TestForwardLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{hub: NewHub(outside(t), slog.New(slog.DiscardHandler))}
		if got, _ := resolved(t, s, "udp", 0, lies); got != "Success 203.0.113.8" {
			t.Error(got)
		}
		if got, _ := resolved(t, s, "tcp", 0, lies, second); got != "Success 203.0.113.2" {
			t.Error(got)
		}
		s.wg.Wait()
	})
}

// TestForwardLarge: what is larger than the client takes is cut.
func TestForwardLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{hub: NewHub(outside(t), slog.New(slog.DiscardHandler))}
		if got, _ := resolved(t, s, "udp", 1232, large); got != "Success truncated" {
			t.Error(got)
		}
		if got, _ := resolved(t, s, "udp", 4096, large); len(got) < 1000 {
			t.Error(got)
		}
		s.wg.Wait()
	})
}

// TestForwardAvoids: a server that is dead for long costs no query a second
// but one now and then; one that comes back is asked first again.
func TestForwardAvoids(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{hub: NewHub(outside(t), slog.New(slog.DiscardHandler))}
		waits := 0
		for range 20 {
			if _, took := resolved(t, s, "udp", 0, dead, second); took > 0 {
				waits++
			}
		}
		if waits < missesToAvoid || waits > missesToAvoid+1 { // it is noted after the answer
			t.Errorf("%d queries waited", waits)
		}
		time.Sleep(avoidance + time.Second)
		if _, took := resolved(t, s, "udp", 0, dead, second); took == 0 {
			t.Error("it was not tried again")
		}
		s.hub.health.answered(netip.MustParseAddrPort(dead))
		if _, took := resolved(t, s, "udp", 0, dead, second); took == 0 {
			t.Error("it is not the first again")
		}
		s.wg.Wait()
	})
}

// TestForwardBounds: of too many queries, the last are told so at once.
func TestForwardBounds(t *testing.T) {
	h := NewHub(nil, slog.New(slog.DiscardHandler))
	var taken []*Server
	for range maxForwards / maxOwnForwards {
		s := &Server{hub: h}
		for range maxOwnForwards {
			if !s.acquire() {
				t.Fatal("too few")
			}
		}
		if s.acquire() {
			t.Error("too many of one sandbox")
		}
		taken = append(taken, s)
	}
	other := &Server{hub: h}
	if other.acquire() {
		t.Error("too many of all")
	}
	var q query
	m := message(t, "example.com.", dnsmessage.TypeA, 0)
	q.parse(m)
	if out, v := other.forwardDatagram(t.Context(), nil, m, &q, netip.AddrPort{}); v != answer || told(t, out) != "ServerFailure" {
		t.Errorf("%v %x", v, out)
	}
	taken[0].release()
	if !other.acquire() {
		t.Error("what was given back can't be had")
	}
}

func TestHealthIsBounded(t *testing.T) {
	h := health{log: slog.New(slog.DiscardHandler)}
	for i := range 3 * maxAiling {
		h.missed(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 53), time.Time{})
	}
	if len(h.servers) > maxAiling {
		t.Errorf("%d servers", len(h.servers))
	}
}
