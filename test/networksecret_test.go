package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testEncrypted listens to all that machines send each other while networks, one
// of them encrypted, are made, used and removed. A word that goes over both is
// seen of the clear one alone.
func (s *netSwarm) testEncrypted(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		name, word := "clear", "the-word-of-the-clear-network"
		opts := []string{"network", "create", "-d", "overlay", "--ipv6"}
		if encrypted {
			name, word = "closed", "the-word-of-the-closed-network"
			opts = append(opts, "--opt", "encrypted")
		}
		w := s.listen(t, word)
		s.manage(t, append(opts, name)...)
		s.service(t, "says", "--mode", "global", "--network", name, "--entrypoint", "/load", "net:1", "serve", ":9000")
		s.service(t, "hears", "--mode", "global", "--network", name, "--entrypoint", "/web", "net:1")
		for _, m := range []string{"w1", "m2"} {
			id, err := s.container("says", m)
			if err != nil {
				t.Fatal(err)
			}
			addresses, err := s.addresses("hears", name)
			if err != nil {
				t.Fatal(err)
			}
			for _, host := range append(addresses, "hears") {
				out, err := s.nodes[m].command("docker", "exec", id, "/load", "http", "-clients", "2", "-kept", "1", "-count", "20",
					"http://"+hostPort(host, webPort)+"/whoami?"+word)
				if err != nil {
					t.Fatal(err)
				}
				if r, err := parseReport(out); err != nil || r.Failed > 0 {
					t.Errorf("%s network, %s to %s: %v, %v", name, m, host, r, err)
				}
			}
		}
		s.manage(t, "service", "rm", "says", "hears")
		await(t, "the network can be removed", func() error {
			_, err := s.nodes["m1"].command("docker", "network", "rm", name)
			return err
		})
		packets, seen := w.end(t)
		t.Logf("%s network: %d packets, %d with the word", name, packets, seen)
		if encrypted && seen > 0 {
			t.Errorf("%d packets of an encrypted network were in clear", seen)
		}
		if !encrypted && seen == 0 {
			t.Error("nothing was heard of the clear network: this test hears nothing")
		}
	}
}

// wire is what goes over the machines' fabric.
type wire struct {
	socket int
	stop   chan struct{}
	ended  chan error

	packets, seen int // with the word
}

const (
	wireBuffer = 64 << 20
	maxPacket  = 128 << 10
	wireRest   = 200 * time.Millisecond
)

// listen counts packets that have the word in them.
func (s *netSwarm) listen(t *testing.T, word string) *wire {
	t.Helper()
	w := &wire{stop: make(chan struct{}), ended: make(chan error, 1)}
	err := inNamespace("/run/legion-machine-"+mark(s.dir)+"/fabric", func() (err error) {
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		w.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
		return err
	})
	if err != nil {
		t.Fatalf("listen to the fabric: %v", err)
	}
	err = errors.Join(unix.SetsockoptInt(w.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wireBuffer),
		unix.SetsockoptTimeval(w.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	if err != nil {
		t.Fatalf("listen to the fabric: %v", err)
	}
	go func() { w.ended <- w.run([]byte(word)) }()
	return w
}

// run hears packets until it is told to stop, and those of a moment more.
func (w *wire) run(word []byte) error {
	var last time.Time
	for b := make([]byte, maxPacket); last.IsZero() || time.Now().Before(last); {
		n, _, err := unix.Recvfrom(w.socket, b, 0)
		switch {
		case err == nil:
			w.packets++
			if bytes.Contains(b[:n], word) {
				w.seen++
			}
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return err
		}
		select {
		case <-w.stop:
			if last.IsZero() {
				last = time.Now().Add(wireRest)
			}
		default:
		}
	}
	return nil
}

// end returns what was heard; a packet that was missed is an error.
func (w *wire) end(t *testing.T) (packets, seen int) {
	t.Helper()
	close(w.stop)
	if err := <-w.ended; err != nil {
		t.Errorf("listen to the fabric: %v", err)
	}
	s, err := unix.GetsockoptTpacketStats(w.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil || s.Drops > 0 {
		t.Errorf("packets that were not heard: %+v, %v", s, err)
	}
	if err := unix.Close(w.socket); err != nil {
		t.Error(err)
	}
	return w.packets, w.seen
}

// inNamespace runs do in a network namespace.
func inNamespace(path string, do func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(path)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", path, err)
	}
	err = do()
	if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
		return errors.Join(err, e) // the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}
