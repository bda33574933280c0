package executor

import (
	"bufio"
	"context"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/legion-swarm/legion/api"
)

const (
	// listenPatience is how long a task that has no test of its own may take to
	// open its ports before it counts as running all the same.
	listenPatience = time.Second
	firstLook      = 2 * time.Millisecond
	maxLook        = 50 * time.Millisecond
	// maxSockets bounds how many sockets of a task are looked at.
	maxSockets = 10_000
)

// awaitListening waits until a task that others are about to be sent to by swarm
// networks has opened its ports: those that its service publishes, or else one that
// its image names. It is for tasks without a test of health or readiness, and waits
// for no more than that a program has started. The error is the context's.
func (c *controller) awaitListening(ctx context.Context, id string) error {
	served := slices.ContainsFunc(c.task.Networks, func(a api.NetworkAttachment) bool { return len(a.Addresses) > 0 })
	if c.e.cfg.Networks == nil || !served || c.task.JobIteration != nil {
		return nil
	}
	i, err := c.engine.ContainerInspect(ctx, id, false)
	if err != nil || i.State.Pid == 0 {
		return settled(err, api.NotFound)
	}
	published, exposed := c.ports(i)
	if len(published)+len(exposed) == 0 {
		return nil
	}
	limit := time.NewTimer(listenPatience)
	defer limit.Stop()
	for wait := firstLook; ; wait = min(2*wait, maxLook) {
		open, alive := openPorts("/proc/" + strconv.Itoa(i.State.Pid) + "/net/")
		if !alive || listens(open, published, exposed) {
			return nil
		}
		look := time.NewTimer(wait)
		select {
		case <-look.C:
		case <-limit.C:
			look.Stop()
			return nil
		case <-ctx.Done():
			look.Stop()
			return ctx.Err()
		}
	}
}

// ports are those of the task that its service publishes, and that its image names.
func (c *controller) ports(i *container.InspectResponse) (published, exposed []network.Port) {
	for _, p := range c.task.Ports {
		if port, ok := network.PortFrom(uint16(p.TargetPort), network.IPProtocol(p.Protocol)); ok {
			published = append(published, port)
		}
	}
	if i.Config != nil {
		exposed = slices.Collect(maps.Keys(i.Config.ExposedPorts))
	}
	return published, exposed
}

// listens reports whether all published ports are open, or with none of these one
// that is exposed.
func listens(open map[network.Port]bool, published, exposed []network.Port) bool {
	if len(published) > 0 {
		return !slices.ContainsFunc(published, func(p network.Port) bool { return !open[p] })
	}
	return slices.ContainsFunc(exposed, func(p network.Port) bool { return open[p] })
}

// openPorts are the ports on which a network namespace takes connections or
// datagrams, from the kernel's tables below a folder; false if they can't be read.
func openPorts(dir string) (map[network.Port]bool, bool) {
	open := map[network.Port]bool{}
	readable := false
	for _, table := range []struct {
		name, state string // the state of a socket that is open
		protocol    network.IPProtocol
	}{{"tcp", "0A", network.TCP}, {"tcp6", "0A", network.TCP}, {"udp", "07", network.UDP}, {"udp6", "07", network.UDP}} {
		f, err := os.Open(dir + table.name)
		if err != nil {
			continue
		}
		readable = true
		for _, n := range portsIn(f, table.state) {
			if p, ok := network.PortFrom(n, table.protocol); ok {
				open[p] = true
			}
		}
		_ = f.Close() // it was only read
	}
	return open, readable
}

// portsIn reads a table of sockets as /proc/net/tcp has it: a line of titles, then
// number, local address and port, remote ones, state, of each socket.
func portsIn(r io.Reader, state string) []uint16 {
	var ports []uint16
	s := bufio.NewScanner(r)
	for n := 0; s.Scan() && n < maxSockets; n++ {
		f := strings.Fields(s.Text())
		if len(f) < 4 || f[3] != state {
			continue
		}
		_, hex, _ := strings.Cut(f[1], ":")
		if p, err := strconv.ParseUint(hex, 16, 16); err == nil && p != 0 {
			ports = append(ports, uint16(p))
		}
	}
	return ports
}
