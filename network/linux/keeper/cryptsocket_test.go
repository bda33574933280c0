package keeper

import (
	"bytes"
	"net/netip"
	"os"
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
		for i, ns := range []*os.File{w.host, w.outside} {
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
		expect := func(data []byte, size int) {
			t.Helper()
			var got []byte
			for len(got) < len(data) {
				arrived.wait()
				who, more, n, ok := r.receive()
				if !ok || who != from || n != min(size, len(more)) {
					t.Fatalf("%d bytes of %d come from %s as %d of %d", len(data), size, who, len(more), n)
				}
				got = slices.Concat(got, more)
			}
			if !bytes.Equal(got, data) {
				t.Errorf("%d bytes of %d arrive as others", len(data), size)
			}
		}
		sizes := []struct{ total, size int }{{1, 1}, {100, 100}, {6400, 100}, {6350, 100}, {60000, 1300}, {6000, 2000}}
		all := make([][]byte, len(sizes))
		for i, c := range sizes {
			all[i] = make([]byte, c.total)
			for j := range all[i] {
				all[i][j] = byte(j / c.size)
			}
			s.add(to, all[i], c.size)
			s.flush()
			expect(all[i], c.size)
		}
		for i, c := range sizes { // more than go at once, one that the device doesn't take among them
			s.add(to, all[i], c.size)
		}
		s.flush()
		for i, c := range sizes {
			expect(all[i], c.size)
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
