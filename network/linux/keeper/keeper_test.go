package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/legion-swarm/legion/network"
)

// Arguments that make this program something else.
const (
	ofTomorrow = "keeper-of-tomorrow"
	mortal     = "keeper-that-dies"
)

// TestMain serves as a keeper, as one of another version, and as one that says why it
// dies at once.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case Command:
			os.Exit(Run(os.Args[2:], os.Stderr))
		case ofTomorrow:
			fmt.Fprintln(os.Stderr, run(os.Args[2], Version+1))
			return
		case mortal:
			panic("it is not to live")
		}
	}
	os.Exit(m.Run())
}

// rig is a daemon's part of a keeper.
type rig struct {
	t      testing.TB
	socket string
	lost   atomic.Int32
}

func newRig(t testing.TB) *rig {
	t.Helper()
	needRoot(t)
	return &rig{t: t, socket: filepath.Join(t.TempDir(), "keeper.sock")}
}

// client returns a new daemon's, whose keeper is started by an argument.
func (r *rig) client(argument string) *Client {
	r.t.Helper()
	c := NewClient(Config{
		Socket: r.socket, Command: []string{"/proc/self/exe", argument}, InHost: func(f func() error) error { return f() },
		Lost: func() { r.lost.Add(1) }, Log: slog.New(slog.DiscardHandler),
	})
	r.t.Cleanup(func() {
		_ = c.Forget(sandboxes(c))
		_ = c.CloseCrypt()
		r.ok(c.Close())
	})
	return c
}

func sandboxes(c *Client) (l []string) {
	for _, r := range c.Resolvers() {
		l = append(l, r.Sandbox)
	}
	return l
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// sockets opens what a sandbox has, and returns where queries go.
func (r *rig) sockets() (files []int, to netip.AddrPort) {
	r.t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	r.ok(err)
	defer u.Close()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	r.ok(err)
	defer l.Close()
	for _, c := range []interface{ File() (*os.File, error) }{u, l.(*net.TCPListener)} {
		f, err := c.File()
		r.ok(err)
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		r.ok(err)
		r.ok(f.Close())
		files = append(files, fd)
	}
	return files, u.LocalAddr().(*net.UDPAddr).AddrPort()
}

// names are of one network in which web has an address.
func names(n int) map[string]*network.Zone {
	return map[string]*network.Zone{"n": {ID: "n", Name: "net", Names: map[string][]netip.Addr{"web": {address(n)}}}}
}

func zoned(sandbox string) Resolver {
	return Resolver{Sandbox: sandbox, Inode: 7, Config: &network.Resolver{Zones: []string{"n"}}}
}

// ask asks for web; the zero address is no answer.
func (r *rig) ask(to netip.AddrPort) netip.Addr {
	r.t.Helper()
	q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("web."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	m, err := q.Pack()
	r.ok(err)
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	r.ok(err)
	defer c.Close()
	r.ok(c.SetDeadline(time.Now().Add(5 * time.Second)))
	_, err = c.Write(m)
	r.ok(err)
	buf := make([]byte, 512)
	n, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}
	}
	var a dnsmessage.Message
	r.ok(a.Unpack(buf[:n]))
	if len(a.Answers) == 0 {
		return netip.Addr{}
	}
	return netip.AddrFrom4(a.Answers[0].Body.(*dnsmessage.AResource).A)
}

func (r *rig) expect(to netip.AddrPort, n int) {
	r.t.Helper()
	if got := r.ask(to); got != address(n) {
		r.t.Errorf("web is %v, not %v", got, address(n))
	}
}

// pid is of the keeper that a client has.
func pid(c *Client) int {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link == nil {
		return 0
	}
	return c.link.process.pid
}

// gone waits until a process has ended.
func (r *rig) gone(pid int) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); unix.Kill(pid, 0) == nil; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("keeper %d has not ended", pid)
		}
	}
}

// A keeper answers while there is no daemon, and the next daemon has what it holds.
// One that holds nothing ends, and leaves no socket.
func TestTakeOver(t *testing.T) {
	r := newRig(t)
	first := r.client(Command)
	r.ok(first.Find())
	if pid(first) != 0 {
		t.Error("a keeper that nobody needs")
	}
	r.ok(first.SetZones(names(1)))
	files, to := r.sockets()
	r.ok(first.Answer([]Resolver{zoned("s")}, files))
	r.expect(to, 1)
	r.ok(first.Narrow(map[string]*network.Zone{}))
	if got := r.ask(to); got.IsValid() {
		t.Errorf("what was taken back is %v", got)
	}
	r.ok(first.Narrow(names(1)))
	r.ok(first.SetCrypt(Settings{Local: address(1)}, map[string]Peers{"o": {VNI: 7}}))
	id := pid(first)
	r.ok(first.Close())
	r.expect(to, 1)

	second := r.client(Command)
	r.ok(second.Find())
	if is := second.Resolvers(); pid(second) != id || len(is) != 1 || is[0].Sandbox != "s" || is[0].Inode != 7 || !is[0].Config.Equal(zoned("s").Config) {
		t.Errorf("keeper %d after %d: %+v", pid(second), id, is)
	}
	if p := second.Peers(); len(p) != 1 || p["o"].VNI != 7 {
		t.Errorf("%+v", p)
	}
	r.expect(to, 1) // as long as it is not told otherwise
	r.ok(second.SetZones(names(2)))
	r.expect(to, 2)
	r.ok(second.Forget([]string{"s", "another"}))
	if got := r.ask(to); got.IsValid() {
		t.Errorf("it is answered: %v", got)
	}
	if files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", id)); err != nil || len(files) > 16 {
		t.Errorf("%d files are open, %v", len(files), err)
	}
	r.ok(second.Close())
	r.gone(id)
	if _, err := os.Stat(r.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
	if n := r.lost.Load(); n != 0 {
		t.Errorf("%d keepers were lost", n)
	}
}

// A keeper of another version is ended, and one of the daemon's own begins with all
// that it is to know.
func TestOtherVersion(t *testing.T) {
	r := newRig(t)
	old := r.client(ofTomorrow)
	if err := old.SetZones(names(1)); err != nil {
		t.Error(err)
	}
	conn, p, err := old.spawn() // as its own daemon did
	r.ok(err)
	w := wire{conn}
	files, to := r.sockets()
	r.ok(w.send(request{Hello: Version + 1}, time.Time{}))
	r.ok(w.send(request{Zones: zonesBetween(nil, names(1), true)[0], Answer: []Resolver{zoned("s")}}, time.Time{}, files...))
	for range 2 {
		_, err := w.receive(&reply{})
		r.ok(err)
	}
	closeFiles(files)
	r.expect(to, 1)
	conn.Close()

	c := r.client(Command)
	r.ok(c.SetZones(names(2)))
	if pid(c) != 0 || len(c.Resolvers()) != 0 {
		t.Errorf("%d with %v", pid(c), c.Resolvers())
	}
	r.ok(p.await(patience))
	files, to = r.sockets()
	r.ok(c.Answer([]Resolver{zoned("s")}, files))
	r.expect(to, 2)
}

// A keeper that is killed is noticed at once, and the next one knows the names.
func TestKeeperKilled(t *testing.T) {
	r := newRig(t)
	c := r.client(Command)
	r.ok(c.SetZones(names(1)))
	for i := range 3 {
		files, to := r.sockets()
		r.ok(c.Answer([]Resolver{zoned("s")}, files))
		r.expect(to, 1)
		r.ok(unix.Kill(pid(c), unix.SIGKILL))
		for len(c.Resolvers()) > 0 || r.lost.Load() <= int32(i) {
			<-time.After(time.Millisecond)
		}
		c.turn <- struct{}{}
		c.resume = time.Time{} // as if time went by
		<-c.turn
	}
	if _, n := c.Status(); n != 3 {
		t.Errorf("%d were lost", n)
	}
}

// A keeper that does not live is started ever more seldom.
func TestKeeperBacksOff(t *testing.T) {
	r := newRig(t)
	c := r.client(mortal)
	for i := range 4 {
		files, _ := r.sockets()
		err := c.Answer([]Resolver{zoned("s")}, files)
		if again := err != nil && strings.Contains(err.Error(), "again and again"); err == nil || again != (i > 1) {
			t.Errorf("try %d: %v", i, err)
		}
	}
	for r.lost.Load() == 0 { // it is time to try again
		<-time.After(time.Millisecond)
	}
	if said := c.lastSaid(); !strings.Contains(said, "it is not to live") {
		t.Errorf("it said %q", said)
	}
}

// Whatever somebody writes to it, a keeper goes on.
func TestKeeperForged(t *testing.T) {
	r := newRig(t)
	c := r.client(Command)
	r.ok(c.SetZones(names(1)))
	files, to := r.sockets()
	r.ok(c.Answer([]Resolver{zoned("s")}, files))
	id := pid(c)
	r.ok(c.Close())
	other := newPipe(t)
	for i, forge := range []func(w wire){
		func(w wire) { _, _ = w.c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) },
		func(w wire) { _, _ = w.c.Write(binary.BigEndian.AppendUint32(nil, maxMessage+1)) },
		func(w wire) { _, _ = w.c.Write([]byte{0, 0}) },
		func(w wire) { _, _ = w.c.Write([]byte{0, 0, 0, 2, '[', ']'}) },
		func(w wire) { _ = w.send(request{Forget: []string{"s"}}, time.Time{}) }, // without a hello
		func(w wire) { _ = w.send(request{Hello: Version + 1, Forget: []string{"s"}}, time.Time{}) },
	} {
		conn, p, err := c.find()
		r.ok(err)
		if p.pid != id {
			t.Fatalf("%d: keeper %d, not %d", i, p.pid, id)
		}
		forge(wire{conn})
		_ = conn.CloseWrite()
		for w := (wire{conn}); ; {
			if _, err := w.receive(&reply{}); err != nil {
				break
			}
		}
		conn.Close()
		r.ok(unix.Close(p.file))
		r.expect(to, 1)
	}
	// What is greeted and not what it should be is refused, and nothing is kept of it.
	next := r.client(Command)
	r.ok(next.Find())
	before := r.openFiles(id)
	for i, q := range []struct {
		r     request
		files []int
	}{
		{request{Answer: []Resolver{zoned("x")}}, nil},
		{request{Answer: []Resolver{zoned("x")}}, []int{other.r, other.w}},
		{request{Answer: []Resolver{{Sandbox: "x"}}}, files},
		{request{Resolve: []Resolver{zoned("x")}}, []int{other.r}},
		{request{Tap: &Tap{Overlay: "o"}}, []int{other.r}},
		{request{Tap: &Tap{Overlay: "o"}}, nil},
		{request{OpenCrypt: &opening{netip.MustParseAddrPort("192.0.2.1:1")}}, nil},
	} {
		if i == 2 {
			q.files, _ = r.sockets()
		}
		var refused refusal
		err := next.with(false, func(l *link) error {
			_, err := l.call(q.r, q.files...)
			return err
		})
		if !errors.As(err, &refused) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if after := r.openFiles(id); after != before {
		t.Errorf("%d files are open, were %d", after, before)
	}
	r.expect(to, 1)
	if pid(next) != id {
		t.Errorf("keeper %d, not %d", pid(next), id)
	}
}

func (r *rig) openFiles(pid int) int {
	r.t.Helper()
	l, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	r.ok(err)
	return len(l)
}

// A keeper whose folder is removed, while there is no daemon, ends.
func TestKeeperOrphaned(t *testing.T) {
	r := newRig(t)
	c := r.client(Command)
	files, _ := r.sockets()
	r.ok(c.Answer([]Resolver{zoned("s")}, files))
	id := pid(c)
	r.ok(c.Close())
	r.ok(os.Remove(r.socket))
	r.gone(id)
}

// What the newest names lack is not answered, whatever is set; what is new in them
// waits until it is set.
func TestNarrow(t *testing.T) {
	r := newRig(t)
	c := r.client(Command)
	files, to := r.sockets()
	r.ok(c.Answer([]Resolver{zoned("s")}, files))
	both := func(n ...int) map[string]*network.Zone {
		z := names(0)
		z["n"].Names["web"] = nil
		for _, i := range n {
			z["n"].Names["web"] = append(z["n"].Names["web"], address(i))
		}
		return z
	}
	none := map[string]*network.Zone{}
	for i, step := range []struct {
		tell  func(map[string]*network.Zone) error
		zones map[string]*network.Zone
		want  netip.Addr
	}{
		{c.Narrow, names(1), netip.Addr{}}, {c.SetZones, names(1), address(1)}, {c.Narrow, both(2, 3), netip.Addr{}},
		{c.SetZones, both(1, 2), address(2)}, {c.SetZones, names(3), address(3)}, {c.Narrow, none, netip.Addr{}}, {c.Narrow, names(3), address(3)},
	} {
		r.ok(step.tell(step.zones))
		if got := r.ask(to); got != step.want {
			t.Errorf("step %d: %v, not %v", i, got, step.want)
		}
	}
}
