package executor

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
)

const sockets = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1
   1: 0100007F:1F90 0100007F:A0B0 01 00000000:00000000 00:00000000 00000000     0        0 22 1
garbage
   2: nonsense 00000000:0000 0A
`

func TestPortsIn(t *testing.T) {
	if got := portsIn(strings.NewReader(sockets), "0A"); !slices.Equal(got, []uint16{80}) {
		t.Error(got)
	}
	if got := portsIn(strings.NewReader(sockets), "01"); !slices.Equal(got, []uint16{8080}) {
		t.Error(got)
	}
}

func TestOpenPorts(t *testing.T) {
	dir := t.TempDir()
	if _, readable := openPorts(dir + "/"); readable {
		t.Error("tables of a process that is gone")
	}
	for _, name := range []string{"tcp6", "udp"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(sockets, " 01 ", " 07 ")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tcp, udp, other := network.MustParsePort("80/tcp"), network.MustParsePort("8080/udp"), network.MustParsePort("8080/tcp")
	open, readable := openPorts(dir + "/")
	if !readable || len(open) != 2 || !open[tcp] || !open[udp] {
		t.Error(open)
	}
	for _, c := range []struct {
		published, exposed []network.Port
		want               bool
	}{
		{[]network.Port{tcp, udp}, nil, true}, {[]network.Port{tcp, other}, []network.Port{tcp}, false}, {nil, []network.Port{other, tcp}, true}, {nil, []network.Port{other}, false},
	} {
		if got := listens(open, c.published, c.exposed); got != c.want {
			t.Errorf("%v, %v: %v", c.published, c.exposed, got)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it only held the port
	own, ok := network.PortFrom(uint16(l.Addr().(*net.TCPAddr).Port), network.TCP)
	if open, _ := openPorts("/proc/self/net/"); !ok || !open[own] {
		t.Error("its own socket is not found")
	}
}
