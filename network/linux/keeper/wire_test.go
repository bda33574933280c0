package keeper

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newPair returns both ends of a connection.
func newPair(t testing.TB) (a, b wire) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range []*wire{&a, &b} {
		f := os.NewFile(uintptr(fds[i]), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		w.c = c.(*net.UnixConn)
		t.Cleanup(func() { w.c.Close() })
	}
	return a, b
}

// Messages of any size arrive as they were sent, each with its files.
func TestWire(t *testing.T) {
	a, b := newPair(t)
	p := newPipe(t)
	var all []request
	for _, n := range []int{0, 1, 100, 100000} {
		r := request{Hello: n}
		for range n {
			r.Forget = append(r.Forget, "a sandbox")
		}
		all = append(all, r)
	}
	sent := make(chan error, 1)
	go func() {
		for i := range all {
			if err := a.send(&all[i], time.Time{}, slices.Repeat([]int{p.w}, i)...); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for i := range all {
		var r request
		files, err := b.receive(&r)
		if err != nil || r.Hello != all[i].Hello || !slices.Equal(r.Forget, all[i].Forget) || len(files) != i {
			t.Fatalf("%d sandboxes of %d, %d files, %v", len(r.Forget), len(all[i].Forget), len(files), err)
		}
		for n, fd := range files {
			if _, err := unix.Write(fd, []byte{byte(n)}); err != nil {
				t.Error(err)
			}
			if got, ok := p.take(); !ok || got != byte(n) {
				t.Errorf("%d, %v", got, ok)
			}
		}
		closeFiles(files)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// What is longer than it may be, or has more files, is refused before it is read.
func TestWireRefuses(t *testing.T) {
	a, b := newPair(t)
	if _, err := a.c.Write(binary.BigEndian.AppendUint32(nil, maxMessage+1)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.receive(&request{}); !errors.Is(err, errLength) {
		t.Error(err)
	}
	p := newPipe(t)
	if err := a.send(request{}, time.Time{}, slices.Repeat([]int{p.w}, maxFiles+1)...); err != nil {
		t.Fatal(err)
	}
	files, err := b.receive(&request{})
	closeFiles(files)
	if !errors.Is(err, errFiles) {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// FuzzRequest : whatever comes, a keeper that holds nothing does it or refuses it.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"Hello":1}`))
	f.Add([]byte(`{"Forget":["a"],"Answer":[{"Sandbox":"a"}],"Resolve":[{}],"Status":true}`))
	f.Add([]byte(`{"Zones":{"Drop":["n"],"Zones":[{"ID":"n","Put":[{"Name":"web","Addresses":["10.0.0.1"]}],"DropOwners":["::1"]}]}}`))
	f.Add([]byte(`{"Settings":{"Local":"10.0.0.1","Keys":[{"ID":1}],"Send":1},"Peers":{"Overlays":[{"Overlay":"o","VNI":1,"Put":[{"MAC":[1,2,3,4,5,6],"Node":"10.0.0.2"}]}]}}`))
	f.Add([]byte(`{"Tap":{"Overlay":"o"},"DropTap":"o","CloseCrypt":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		a, b := newPair(t)
		go func() {
			_, _ = a.c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
			_ = a.c.CloseWrite()
		}()
		var r request
		files, err := b.receive(&r)
		if err != nil || r.OpenCrypt != nil { // which takes a port
			closeFiles(files)
			return
		}
		h, err := newHolder(newJournal().logger())
		if err != nil {
			t.Fatal(err)
		}
		defer h.threads.own.Close()
		_ = h.do(&r, files)
		if !h.idle() {
			t.Error("it holds what it was not given")
		}
	})
}
