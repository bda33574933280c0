package dns

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/network"
)

func addrs(l ...string) (r []netip.Addr) {
	for _, s := range l {
		r = append(r, netip.MustParseAddr(s))
	}
	return r
}

// twoZones are a network with IPv6, one without, and one that is called like a
// domain of the internet.
func twoZones() map[string]*network.Zone {
	return map[string]*network.Zone{
		"n1": {ID: "n1", Name: "Backend", Names: map[string][]netip.Addr{
			"web": addrs("10.0.1.2"), "tasks.web": addrs("10.0.1.3", "10.0.1.4"), "both": addrs("10.0.1.5", "fd01::5"),
			"none": nil, "tasks.none": nil, "six": addrs("fd01::6"), "api.internal": addrs("10.0.1.7"),
		}, Owners: map[netip.Addr]string{netip.MustParseAddr("10.0.1.3"): "web.1.Backend", netip.MustParseAddr("fd01::5"): "both.Backend"}},
		"n2": {ID: "n2", Name: "front.end", Names: map[string][]netip.Addr{"web": addrs("10.0.2.2"), "db": addrs("10.0.2.3")}},
		"n3": {ID: "n3", Name: "dev", Names: map[string][]netip.Addr{"x": addrs("10.0.3.2")}},
	}
}

// message packs a query; size 0: without EDNS.
func message(t testing.TB, name string, kind dnsmessage.Type, size int) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	if size > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(size, dnsmessage.RCodeSuccess, false); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// told renders an answer: its outcome, flags and records.
func told(t testing.TB, b []byte) string {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	s := strings.TrimPrefix(m.RCode.String(), "RCode")
	if !m.Response || m.ID != 0x1234 {
		s += " no-response"
	}
	if m.Truncated {
		s += " truncated"
	}
	for _, a := range m.Answers {
		if a.Header.Name != m.Questions[0].Name || a.Header.TTL != 0 {
			s += " of-another-name-or-time"
		}
		switch r := a.Body.(type) {
		case *dnsmessage.AResource:
			s += " " + netip.AddrFrom4(r.A).String()
		case *dnsmessage.AAAAResource:
			s += " " + netip.AddrFrom16(r.AAAA).String()
		case *dnsmessage.PTRResource:
			s += " " + r.PTR.String()
		}
	}
	return s
}

func TestDecide(t *testing.T) {
	names := NewNames(twoZones(), nil)
	with := &network.Resolver{Zones: []string{"n1", "n2", "n3", "gone"}, Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}}
	alone := &network.Resolver{Zones: with.Zones}
	const a, aaaa, ptr, mx = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeMX
	for _, c := range []struct {
		name      string
		kind      dnsmessage.Type
		want      string
		wantAlone string // empty: the same
	}{
		{"web.", a, "Success 10.0.1.2", ""}, // the first network's
		{"WeB.", a, "Success 10.0.1.2", ""},
		{"web.backend.", a, "Success 10.0.1.2", ""},
		{"web.BACKEND.", a, "Success 10.0.1.2", ""},
		{"web.front.end.", a, "Success 10.0.2.2", ""},
		{"db.", a, "Success 10.0.2.3", ""},
		{"db.backend.", a, "NameError", ""},
		{"other.backend.", a, "NameError", ""},
		{"a.b.backend.", aaaa, "NameError", ""},
		{"backend.", a, "forward", "NameError"},
		{"x.dev.", a, "Success 10.0.3.2", ""},
		{"other.dev.", a, "forward", "NameError"},
		{"tasks.web.", a, "Success 10.0.1.3 10.0.1.4", ""},
		{"tasks.web.backend.", a, "Success 10.0.1.3 10.0.1.4", ""},
		{"tasks.db.", a, "NameError", ""},
		{"tasks.other.", a, "forward", "NameError"},
		{"tasks.", a, "forward", "NameError"},
		{"tasks.tasks.web.", a, "NameError", ""},
		{"none.", a, "Success", ""},
		{"tasks.none.", aaaa, "Success", ""},
		{"web.", aaaa, "Success", ""}, // there, but without such an address
		{"web.", mx, "Success", ""},
		{"both.", aaaa, "Success fd01::5", ""},
		{"both.", a, "Success 10.0.1.5", ""},
		{"six.", a, "Success", ""},
		{"api.internal.", a, "Success 10.0.1.7", ""},
		{"other.internal.", a, "forward", "NameError"},
		{"example.com.", a, "forward", "NameError"},
		{"single.", a, "forward", "NameError"},
		{".", a, "forward", "NameError"},
		{"3.1.0.10.in-addr.arpa.", ptr, "Success web.1.Backend.", ""},
		{"3.1.0.10.IN-ADDR.arpa.", ptr, "Success web.1.Backend.", ""},
		{"9.1.0.10.in-addr.arpa.", ptr, "forward", "NameError"},
		{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa.", ptr, "Success both.Backend.", ""},
		{"web.", dnsmessage.TypeALL, "Refused", ""},
		{"example.com.", dnsmessage.TypeALL, "Refused", ""},
		{"backend.", dnsmessage.TypeAXFR, "Refused", ""},
		{"backend.", 251, "Refused", ""},
	} {
		for r, want := range map[*network.Resolver]string{with: c.want, alone: c.wantAlone} {
			if want == "" {
				want = c.want
			}
			var q query
			m := message(t, c.name, c.kind, 0)
			out, v := decide(nil, m, &q, names, r, true, 0)
			got := "forward"
			if v == answer {
				got = told(t, out)
				if string(out[headerSize:len(m)]) != string(m[headerSize:]) {
					t.Errorf("%s %s: the question was changed", c.name, c.kind)
				}
			}
			if got != want {
				t.Errorf("%s %s, %d servers: %s, want %s", c.name, c.kind, len(r.Servers), got, want)
			}
		}
	}
}

// TestDecideOddities: what is no ordinary query.
func TestDecideOddities(t *testing.T) {
	names, r := NewNames(twoZones(), nil), &network.Resolver{Zones: []string{"n1"}}
	ordinary := func(change func(m []byte) []byte) []byte { return change(message(t, "web.", dnsmessage.TypeA, 1232)) }
	at := func(i int, v byte) []byte {
		return ordinary(func(m []byte) []byte { m[i] = v; return m })
	}
	for _, c := range []struct {
		what string
		m    []byte
		code int // -1: no answer
	}{
		{"ordinary", at(0, 0x12), 0},
		{"nothing", nil, -1},
		{"too short", make([]byte, 11), -1},
		{"an answer", at(2, 0x81), -1},
		{"a status query", at(2, 2<<3), 4},
		{"two questions", at(5, 2), 1},
		{"no question", at(5, 0), 1},
		{"another class", at(20, 3), 5},
		{"more records than there are", at(11, 3), 1},
		{"a pointer for a name", at(12, 0xc0), 1},
		{"a label that is too long", at(12, 64), 1},
		{"a name without end", at(12, 60), 1},
		{"cut", ordinary(func(m []byte) []byte { return m[:len(m)-1] }), 1},
		{"cut in the question", ordinary(func(m []byte) []byte { return m[:18] }), 1},
		{"EDNS of the future", at(27, 1), 0}, // with a part of the code elsewhere
		{"EDNS of another name", at(21, 0xc0), 1},
	} {
		var q query
		out, v := decide(nil, c.m, &q, names, r, true, 0)
		switch {
		case c.code < 0:
			if v != ignore {
				t.Errorf("%s: answered", c.what)
			}
		case v != answer || int(out[3]&rcodeMask) != c.code:
			t.Errorf("%s: %v %x, want code %d", c.what, v, out, c.code)
		}
	}
	// A dot inside a label is none between labels.
	m := message(t, "tasks.web.", dnsmessage.TypeA, 0)
	copy(m[headerSize:], "\x09tasks.web\x00")
	var q query
	if out, _ := decide(nil, m, &q, names, r, true, 0); out[3]&rcodeMask != byte(NameError) {
		t.Errorf("%x", out)
	}
}

// TestDecideLarge: as many addresses as the client takes, from a place that
// changes.
func TestDecideLarge(t *testing.T) {
	var many []netip.Addr
	for i := range 5000 {
		many = append(many, netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}))
	}
	names := NewNames(map[string]*network.Zone{"n": {ID: "n", Name: "net", Names: map[string][]netip.Addr{"many": many, "three": many[:3]}}}, nil)
	r := &network.Resolver{Zones: []string{"n"}}
	for _, c := range []struct {
		size     int
		datagram bool
		limit    int
		cut      bool
	}{{0, true, 512, true}, {100, true, 512, true}, {1232, true, 1232, true}, {65535, true, maxUDP, true}, {0, false, maxMessage, false}} {
		var q query
		out, _ := decide(nil, message(t, "many.", dnsmessage.TypeA, c.size), &q, names, r, c.datagram, 77)
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if len(out) > c.limit || len(out) < c.limit-32 || m.Truncated != c.cut {
			t.Errorf("%+v: %d bytes, truncated %v", c, len(out), m.Truncated)
		}
		if (len(m.Additionals) == 1) != (c.size > 0) {
			t.Errorf("%+v: %d additional records", c, len(m.Additionals))
		}
		if first := m.Answers[0].Body.(*dnsmessage.AResource); first.A != many[77].As4() {
			t.Errorf("begins with %v", first)
		}
	}
	firsts := map[string]bool{}
	for start := range uint32(3) {
		var q query
		out, _ := decide(nil, message(t, "three.", dnsmessage.TypeA, 0), &q, names, r, true, start)
		firsts[told(t, out)] = true
	}
	if len(firsts) != 3 {
		t.Errorf("%v", firsts)
	}
}

// TestLookupModel: random zones against what the words say.
func TestLookupModel(t *testing.T) {
	labels := []string{"a", "b", "tasks", "web", "net1", "net2"}
	rapid.Check(t, func(r *rapid.T) {
		text := rapid.Custom(func(r *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom(labels), 1, 3).Draw(r, "labels"), ".")
		})
		zones, ids := map[string]*network.Zone{}, []string{}
		for i := range rapid.IntRange(0, 3).Draw(r, "zones") {
			z := &network.Zone{ID: fmt.Sprint(i), Name: rapid.SampledFrom([]string{"net1", "net2", "a"}).Draw(r, "name"), Names: map[string][]netip.Addr{}}
			for _, n := range rapid.SliceOfN(text, 0, 4).Draw(r, "names") {
				z.Names[n] = addrs(fmt.Sprintf("10.0.%d.%d", i, len(z.Names)))
			}
			zones[z.ID] = z
			ids = append(ids, z.ID)
		}
		name := text.Draw(r, "name")
		got := NewNames(zones, nil).Lookup(ids, []byte(name), TypeA)
		want, found := []netip.Addr(nil), false
		find := func(in, name string) {
			if l, ok := zones[in].Names[name]; ok && !found {
				want, found = l, true
			}
		}
		for _, id := range ids {
			find(id, name)
		}
		for _, id := range ids {
			if rest, ok := strings.CutSuffix(name, "."+zones[id].Name); ok {
				find(id, rest)
			}
		}
		if got.Exists != found || !slices.Equal(got.Addresses, want) || found && !got.Known {
			r.Fatalf("%s: %+v, want %v %v", name, got, found, want)
		}
	})
}

func TestNamesAreShared(t *testing.T) {
	zones := twoZones()
	old := NewNames(zones, nil)
	zones["n2"] = &network.Zone{ID: "n2", Name: "front.end"}
	n := NewNames(zones, old)
	if n.zones["n1"] != old.zones["n1"] || n.zones["n2"] == old.zones["n2"] {
		t.Error("not what differs, and only that, was made anew")
	}
}

func lowered(b []byte) []byte {
	b = bytes.Clone(b)
	for i, c := range b {
		b[i] = lower(c)
	}
	return b
}

// FuzzDecide: any bytes; what is accepted is what dnsmessage reads, too, and
// what is answered is a message that it reads and that keeps to the size.
func FuzzDecide(f *testing.F) {
	for _, name := range []string{"web.", "tasks.web.backend.", "3.1.0.10.in-addr.arpa.", ".", "x.dev."} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeALL} {
			f.Add(message(f, name, kind, 0), true)
			f.Add(message(f, name, kind, 1232), false)
		}
	}
	names := NewNames(twoZones(), nil)
	r := &network.Resolver{Zones: []string{"n1", "n2", "n3"}, Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}}
	f.Fuzz(func(t *testing.T, m []byte, datagram bool) {
		before := string(m)
		var q query
		out, v := decide(nil, m, &q, names, r, datagram, 3)
		if string(m) != before {
			t.Fatal("the message was changed")
		}
		var p dnsmessage.Parser
		h, err := p.Start(m)
		if v == forward {
			if err != nil || h.Response {
				t.Fatalf("forwarded: %v", err)
			}
			question, err := p.Question()
			if err != nil && q.plain {
				t.Fatalf("accepted a question that is none: %v", err)
			}
			if name := bytes.TrimSuffix(question.Name.Data[:question.Name.Length], []byte(".")); err == nil && q.plain && !bytes.Equal(lowered(name), q.name()) {
				t.Fatalf("%q was read as %q", question.Name, q.name())
			}
			if q.edns && binary.BigEndian.Uint16(m[q.size-2:]) != uint16(typeOPT) {
				t.Fatal("not the OPT record")
			}
		}
		if v != answer {
			return
		}
		if len(out) > maxMessage || datagram && len(out) > max(minUDP, min(q.udpSize, maxUDP)) {
			t.Fatalf("%d bytes", len(out))
		}
		var parsed dnsmessage.Parser
		if h, err = parsed.Start(out); err != nil || !h.Response {
			t.Fatalf("%x: %v", out, err)
		}
		if q.plain {
			var a dnsmessage.Message
			if err := a.Unpack(out); err != nil {
				t.Fatalf("%x: %v", out, err)
			}
		}
	})
}

// FuzzBelongs: answers of any bytes.
func FuzzBelongs(f *testing.F) {
	m := message(f, "example.com.", dnsmessage.TypeA, 1232)
	f.Add(m, m)
	f.Fuzz(func(t *testing.T, m, a []byte) {
		var q query
		if code, ok := q.parse(m); ok && code == Success {
			if belongs(a, &q, 0x1234) && (len(a) < headerSize || a[2]&0x80 == 0) {
				t.Fatal("a query was taken for an answer")
			}
		}
	})
}

func TestAppendName(t *testing.T) {
	for name, want := range map[string]string{
		"": "\x00", "a": "\x01a\x00", "web.net": "\x03web\x03net\x00", "web.net.": "\x03web\x03net\x00",
		"a..b": "", ".": "", strings.Repeat("a", 64): "", strings.Repeat("abc.", 64): "",
	} {
		b, ok := appendName(nil, name)
		if ok != (want != "") || ok && string(b) != want {
			t.Errorf("%q: %x %v", name, b, ok)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	names, r := NewNames(twoZones(), nil), &network.Resolver{Zones: []string{"n2", "n1"}}
	m := message(b, "tasks.web.backend.", dnsmessage.TypeA, 1232)
	out := make([]byte, 0, 512)
	var q query
	b.ReportAllocs()
	for b.Loop() {
		out, _ = decide(out, m, &q, names, r, true, anyStart())
	}
}

// In a network with IPv6, too, each address is as often the first of its family.
func TestEachAddressComesFirst(t *testing.T) {
	names := NewNames(map[string]*network.Zone{"n": {ID: "n", Name: "net", Names: map[string][]netip.Addr{
		"dual": addrs("10.9.0.1", "10.9.0.2", "10.9.0.3", "fd01::1", "fd01::2", "fd01::3"),
	}}}, nil)
	r := &network.Resolver{Zones: []string{"n"}}
	for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		firsts := map[string]int{}
		for start := range uint32(12) {
			var q query
			out, _ := decide(nil, message(t, "dual.", kind, 0), &q, names, r, true, start)
			var m dnsmessage.Message
			if err := m.Unpack(out); err != nil || len(m.Answers) != 3 {
				t.Fatal(m.Answers, err)
			}
			firsts[m.Answers[0].Body.GoString()]++
		}
		for a, n := range firsts {
			if n != 4 {
				t.Errorf("%s is the first %d times of 12", a, n)
			}
		}
	}
}
