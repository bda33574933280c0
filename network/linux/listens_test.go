package linux

import (
	"net"
	"strings"
	"testing"

	"github.com/legion-swarm/legion/network"
)

func TestListens(t *testing.T) {
	w := newMeshWorld(t)
	p := w.planes[1]
	w.answer(w.hosts["out"], "out")
	w.in(w.hosts["h1"], func() {
		l, err := net.Listen("tcp", "127.0.0.1:8100")
		w.ok(err)
		defer l.Close()
		u, err := net.ListenPacket("udp", "[::1]:8101")
		w.ok(err)
		defer u.Close()
		out, err := (&net.Dialer{LocalAddr: &net.TCPAddr{Port: 8102}}).DialContext(t.Context(), "tcp", "10.99.0.100:80")
		w.ok(err)
		defer out.Close()
		connected, err := (&net.Dialer{LocalAddr: &net.UDPAddr{Port: 8103}}).DialContext(t.Context(), "udp", "10.99.0.100:80")
		w.ok(err)
		defer connected.Close()
		for _, c := range []struct {
			proto network.Protocol
			port  uint16
			want  bool
		}{
			{network.TCP, 8100, true}, {network.UDP, 8100, false}, {network.UDP, 8101, true}, {network.TCP, 8102, false}, {network.UDP, 8103, false},
			{network.SCTP, 1, false},
		} {
			if got, err := p.listens(c.proto, c.port); got != c.want || err != nil {
				t.Errorf("%s %d: %v, %v", c.proto, c.port, got, err)
			}
		}
		// A published port may be one that a connection goes out from.
		publish(w.config[1], network.TCP, 8102, 21)
		publish(w.config[1], network.UDP, 8103, 21)
		w.set()
	})
	w.serveTasks()
	for _, to := range [][2]string{{"tcp", "10.99.0.1:8102"}, {"udp", "10.99.0.1:8103"}} {
		if seen, name := w.query(w.hosts["out"], to[0], to[1]); seen != "10.99.0.100" || name != "1" {
			t.Errorf("%s: %s, %s", to, seen, name)
		}
	}
}

func FuzzHasSocket(f *testing.F) {
	f.Add("  sl  local_address rem_address   st\n   0: 0100007F:1FA4 00000000:0000 0A 0\n")
	f.Fuzz(func(t *testing.T, s string) {
		if has, err := hasSocket(strings.NewReader(s), 0x1fa4, stateListen); has && err == nil && !strings.Contains(s, ":1FA4") {
			t.Error("found what is not there")
		}
	})
}
