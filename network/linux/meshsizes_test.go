package linux

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/legion-swarm/legion/network"
)

// Whatever a client sends arrives and comes back whole, though a tunnel on the
// way takes smaller packets than the client's network.
func TestMeshSizes(t *testing.T) {
	w := newMeshWorld(t)
	for i := 1; i <= 3; i++ {
		for _, proto := range []network.Protocol{network.TCP, network.UDP} {
			publish(w.config[i], proto, 8030, 22).Target = 82
		}
	}
	w.set()
	w.mirror(w.task(2))
	for _, to := range []string{"10.99.0.2:8030", "10.99.0.3:8030", "[fd99::3]:8030"} {
		c, err := w.dial(w.hosts["out"], "udp", to)
		w.ok(err)
		defer c.Close()
		for _, n := range []int{0, 1, 1372, 1400, 1422, 1452, 1472, 1473, 3000, 8000, 60000} {
			out, in := bytes.Repeat([]byte{byte(n)}, n), make([]byte, 65536)
			var got int
			for range 3 { // UDP may lose some: the first is how the way's MTU is learned
				_, _ = c.Write(out)
				_ = c.SetReadDeadline(time.Now().Add(time.Second))
				if got, err = c.Read(in); err == nil {
					break
				}
			}
			if err != nil || !bytes.Equal(in[:got], out) {
				t.Errorf("%s: %d bytes: %d came back, %v", to, n, got, err)
			}
		}
		s, err := w.dial(w.hosts["out"], "tcp", to)
		w.ok(err)
		defer s.Close()
		out := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		_ = s.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			_, _ = s.Write(out)
			_ = s.(*net.TCPConn).CloseWrite()
		}()
		if in, err := io.ReadAll(s); err != nil || !bytes.Equal(in, out) {
			t.Errorf("%s: %d of %d bytes came back, %v", to, len(in), len(out), err)
		}
	}
}

// mirror sends back what comes to port 82.
func (w *meshWorld) mirror(ns string) {
	w.t.Helper()
	w.in(ns, func() {
		l, err := net.Listen("tcp", ":82")
		w.ok(err)
		u, err := net.ListenPacket("udp", ":82")
		w.ok(err)
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(buf[:n], from)
			}
		}()
	})
}
