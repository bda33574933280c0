package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/rpc"
)

// fleet is the managers.
type fleet struct {
	managers []*child
	creds    *rpc.Credentials // of the agents
	profile  string
}

// child is a manager's process.
type child struct {
	member
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

const managers = 3

func newFleet(ctx context.Context, dir string, s size, profile string) (f *fleet, err error) {
	root, err := ca.NewRoot(time.Now())
	if err != nil {
		return nil, err
	}
	cluster := api.NewID()
	f = &fleet{creds: &rpc.Credentials{}, profile: profile}
	cert, key, err := issue(root, cluster, agentsID, swarm.NodeRoleWorker)
	if err != nil {
		return nil, err
	}
	keys, err := ca.NewKeys(root, cert, key, time.Now())
	if err != nil {
		return nil, err
	}
	if err := f.creds.Set(keys); err != nil {
		return nil, err
	}
	var members []member
	for i := range managers {
		addr, err := freeAddr(ctx)
		if err != nil {
			return nil, err
		}
		members = append(members, member{Raft: uint64(i + 1), Node: fmt.Sprintf("manager%d", i), Addr: addr})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.end())
		}
	}()
	for _, m := range members {
		if err := f.start(dir, root, cluster, m, members, s); err != nil {
			return nil, err
		}
	}
	_, err = f.managers[0].do(&order{Do: "form"})
	return f, err
}

func freeAddr(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func issue(root *ca.Root, cluster, id string, role swarm.NodeRole) (cert, key []byte, err error) {
	key, csr, err := ca.NewRequest()
	if err != nil {
		return nil, nil, err
	}
	cert, err = root.Issue(csr, ca.Identity{NodeID: id, Role: role, Cluster: cluster}, 0, time.Now())
	return cert, key, err
}

// start starts a manager.
func (f *fleet) start(dir string, root *ca.Root, cluster string, m member, all []member, s size) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := &child{member: m, cmd: exec.Command(self, "manager")} //nolint:noctx // it ends when its input does
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	c.out = json.NewDecoder(bufio.NewReader(out))
	if err := c.cmd.Start(); err != nil {
		return err
	}
	f.managers = append(f.managers, c)
	told := setup{Self: m, First: all[0], Others: all[1:], Dir: dir, Cluster: cluster, Root: root.CertPEM(), Beat: s.Beat}
	if f.profile != "" {
		told.Profile = filepath.Join(f.profile, m.Node)
	}
	if told.Cert, told.Key, err = issue(root, cluster, m.Node, swarm.NodeRoleManager); err != nil {
		return err
	}
	return json.NewEncoder(c.in).Encode(told)
}

// do gives a manager an order.
func (c *child) do(o *order) (*answer, error) {
	if err := json.NewEncoder(c.in).Encode(o); err != nil {
		return nil, err
	}
	a := &answer{}
	if err := c.out.Decode(a); err != nil {
		return nil, fmt.Errorf("%s has ended: %w", c.Node, err)
	}
	if a.Err != "" {
		return nil, fmt.Errorf("%s: %s", c.Node, a.Err)
	}
	return a, nil
}

// end ends all managers.
func (f *fleet) end() error {
	var errs []error
	for _, c := range f.managers {
		errs = append(errs, json.NewEncoder(c.in).Encode(order{Do: "end"}), c.in.Close())
	}
	for _, c := range f.managers {
		errs = append(errs, c.cmd.Wait())
	}
	return errors.Join(errs...)
}

// memory returns what a process has in memory now, and had at most, in bytes.
func (c *child) memory() (now, most float64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64) // zero where it is no number
		switch f[0] {
		case "VmRSS:":
			now = kb * 1024
		case "VmHWM:":
			most = kb * 1024
		}
	}
	return now, most, nil
}

// ticks is how often the kernel counts in a second.
const ticks = 100

// cpu returns the seconds of processor that a process has taken.
func cpu(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, fmt.Errorf("process %d: unexpected stat", pid)
	}
	user, err1 := strconv.ParseFloat(f[11], 64)
	system, err2 := strconv.ParseFloat(f[12], 64)
	return (user + system) / ticks, errors.Join(err1, err2)
}
