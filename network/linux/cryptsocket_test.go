package linux

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
)

// Datagrams arrive as they were sent, however many the kernel cuts and puts together
// at once, and whether or not they fit the device.
func TestCryptSocket(t *testing.T) {
	w := newWorld(t)
	const port = 4790
	for _, a := range [][2]string{{"10.99.0.1", "10.99.0.2"}, {"fd99::1", "fd99::2"}} {
		var sockets [2]*cryptSocket
		for i, ns := range []string{w.host, w.outside} {
			w.in(ns, func() {
				var err error
				sockets[i], err = listenCrypt(netip.AddrPortFrom(netip.MustParseAddr(a[i]), port))
				w.ok(err)
			})
		}
		from, to := netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])
		s, r := sockets[0].sender(port), sockets[1].receiver()
		arrived, err := newArrival(sockets[1].fd)
		w.ok(err)
		for _, c := range []struct{ total, size int }{{1, 1}, {100, 100}, {6400, 100}, {6350, 100}, {60000, 1300}, {6000, 2000}} {
			data := make([]byte, c.total)
			for i := range data {
				data[i] = byte(i / c.size)
			}
			s.send(to, data, c.size)
			var got []byte
			for len(got) < c.total {
				arrived.wait()
				who, more, size, ok := r.receive()
				if !ok || who != from || size != min(c.size, len(more)) {
					t.Fatalf("%d bytes of %d come from %s as %d of %d", c.total, c.size, who, len(more), size)
				}
				got = slices.Concat(got, more)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d arrive as others", c.total, c.size)
			}
		}
		if _, _, _, ok := r.receive(); ok {
			t.Error("something comes that nobody has sent")
		}
		w.ok(arrived.close())
		for _, s := range sockets {
			w.ok(s.close())
		}
	}
}
