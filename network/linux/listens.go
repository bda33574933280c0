package linux

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/legion-swarm/legion/network"
)

// States of sockets in /proc/net: one that waits for connections, and one of
// UDP that is bound and not connected.
const (
	stateListen = "0A"
	stateBound  = "07"
)

// listens reports whether a process of the host serves a port. A port can also
// be taken for a while by a connection that goes out from it, which is no reason
// not to publish it.
func (p *Plane) listens(proto network.Protocol, port uint16) (bool, error) {
	state := stateListen
	if proto == network.UDP {
		state = stateBound
	}
	found := false
	err := p.inHost(func() error {
		for _, name := range []string{string(proto), string(proto) + "6"} {
			f, err := os.Open("/proc/thread-self/net/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			has, err := hasSocket(f, port, state)
			_ = f.Close()
			if err != nil {
				return fmt.Errorf("read /proc/net/%s: %w", name, err)
			}
			found = found || has
		}
		return nil
	})
	return found, err
}

// hasSocket looks for a socket in a table of /proc/net: number, local address,
// remote address, state.
func hasSocket(r io.Reader, port uint16, state string) (bool, error) {
	suffix := fmt.Sprintf(":%04X", port)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) > 3 && strings.HasSuffix(f[1], suffix) && f[3] == state {
			return true, nil
		}
	}
	return false, lines.Err()
}
