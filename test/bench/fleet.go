package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

// fleet is a set of local machines whose daemons are all of one kind: Legion's,
// or dockerd in machines that are bare.
type fleet struct {
	dockerd string // its path; empty: Legion
	dir     string
	boxes   map[string]*box
}

// box is one machine.
type box struct {
	name, addr string
	init       int // its process 1, as the host numbers it
	client     *client.Client
}

const swarmPort = ":2377"

// newFleet makes the machines and waits until their daemons answer. It returns a
// fleet to remove even with an error.
func newFleet(ctx context.Context, dockerd string, names ...string) (*fleet, error) {
	dir, err := os.MkdirTemp("/var/tmp", "legion-bench-")
	f := &fleet{dockerd: dockerd, dir: dir, boxes: map[string]*box{}}
	if err != nil {
		return f, err
	}
	create := []string{"create"}
	if dockerd != "" {
		create = append(create, "--local-bare")
	}
	if _, err := f.machine(ctx, append(create, names...)...); err != nil {
		return f, err
	}
	for _, name := range names {
		if err := f.open(ctx, name); err != nil {
			return f, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f, nil
}

func (f *fleet) open(ctx context.Context, name string) error {
	b := &box{name: name}
	addr, err := f.machine(ctx, "ip", name)
	if err != nil {
		return err
	}
	b.addr = strings.TrimSpace(addr)
	var process struct{ PID int }
	text, err := os.ReadFile(f.path(name, "process.json"))
	if err == nil {
		err = json.Unmarshal(text, &process)
	}
	if err != nil {
		return err
	}
	b.init = process.PID
	if b.client, err = client.New(client.WithHost("unix://" + f.path(name, "legion.sock"))); err != nil {
		return err
	}
	f.boxes[name] = b
	return f.serve(ctx, name)
}

func (f *fleet) path(name, file string) string {
	return filepath.Join(f.dir, "machines", name, file)
}

// machine runs legion machine.
func (f *fleet) machine(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "bin/legion", append([]string{"machine"}, args...)...)
	cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+f.dir)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("machine %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// serve waits until a machine's daemon answers, and starts it first where the
// machine does not do so itself.
func (f *fleet) serve(ctx context.Context, name string) error {
	b := f.boxes[name]
	if f.dockerd != "" {
		// The same environment, where dockerd finds its containerd and libraries.
		run := fmt.Sprintf("cd /; export PATH=%q LD_LIBRARY_PATH=%q; rm -f /run/docker.pid; setsid %s --data-root %s --exec-root /run/docker -p /run/docker.pid -H unix://%s --config-file %s >>%s 2>&1 </dev/null &",
			os.Getenv("PATH"), os.Getenv("LD_LIBRARY_PATH"), f.dockerd, f.path(name, "data"), f.path(name, "legion.sock"), f.path(name, "dockerd.json"), f.path(name, "daemon.log"))
		if err := os.WriteFile(f.path(name, "dockerd.json"), []byte("{}"), 0o600); err != nil {
			return err
		}
		if _, err := f.machine(ctx, "ssh", name, run); err != nil {
			return err
		}
	}
	_, err := within(ctx, startTimeout, "the daemon answers", func() (bool, error) {
		_, err := b.client.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
		return err == nil, err
	})
	return err
}

func (f *fleet) load(ctx context.Context, names ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, name := range names {
		g.Go(func() error { return (&peer{client: f.boxes[name].client}).load(ctx) })
	}
	return g.Wait()
}

// remove leaves nothing of the fleet; it works after a failure.
func (f *fleet) remove() error {
	if f.dir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	out, err := f.machine(ctx, "ls", "-q")
	for _, b := range f.boxes {
		err = errors.Join(err, b.client.Close())
	}
	if names := strings.Fields(out); len(names) > 0 {
		_, err1 := f.machine(ctx, append([]string{"rm", "-f"}, names...)...)
		err = errors.Join(err, err1)
	}
	return errors.Join(err, os.RemoveAll(f.dir))
}

// processes are those in the machine, without its first.
func (b *box) processes() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, s := range stats {
		text, err := os.ReadFile(s)
		if err != nil { // gone meanwhile
			continue
		}
		_, after, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(after)
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		pid, err1 := strconv.Atoi(filepath.Base(filepath.Dir(s)))
		parent, err2 := strconv.Atoi(fields[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		children[parent] = append(children[parent], pid)
	}
	var pids []int
	for todo := []int{b.init}; len(todo) > 0; todo = todo[1:] {
		pids = append(pids, children[todo[0]]...)
		todo = append(todo, children[todo[0]]...)
	}
	return pids, nil
}

// end kills all processes of the machine but its first, which is stopped so that
// it starts none again: the host lives, and its kernel closes the connections.
func (b *box) end() error {
	if err := syscall.Kill(b.init, syscall.SIGSTOP); err != nil {
		return err
	}
	pids, err := b.processes()
	for _, pid := range pids {
		if e := syscall.Kill(pid, syscall.SIGKILL); e != nil && !errors.Is(e, syscall.ESRCH) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// revive lets the machine go on after end.
func (f *fleet) revive(ctx context.Context, name string) error {
	if err := syscall.Kill(f.boxes[name].init, syscall.SIGCONT); err != nil {
		return err
	}
	return f.serve(ctx, name)
}

// join makes a machine a node and waits until it is ready, as the manager at
// sees it.
func (f *fleet) join(ctx context.Context, name, at string, manager bool) error {
	s, err := f.boxes[at].client.SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	token := s.Swarm.JoinTokens.Worker
	if manager {
		token = s.Swarm.JoinTokens.Manager
	}
	b := f.boxes[name]
	if _, err := b.client.SwarmJoin(ctx, client.SwarmJoinOptions{
		ListenAddr: "0.0.0.0" + swarmPort, AdvertiseAddr: b.addr + swarmPort, RemoteAddrs: []string{f.boxes[at].addr + swarmPort}, JoinToken: token,
	}); err != nil {
		return err
	}
	return f.ready(ctx, at, name)
}

func (f *fleet) ready(ctx context.Context, at string, names ...string) error {
	_, err := within(ctx, most, fmt.Sprintf("%q are ready", names), func() (bool, error) {
		l, err := f.boxes[at].client.NodeList(ctx, client.NodeListOptions{})
		ready := map[string]bool{}
		for _, n := range l.Items {
			well := n.ManagerStatus == nil || n.ManagerStatus.Reachability == swarm.ReachabilityReachable
			ready[n.Description.Hostname] = ready[n.Description.Hostname] || n.Status.State == swarm.NodeStateReady && well && (n.Spec.Role != swarm.NodeRoleManager || n.ManagerStatus != nil)
		}
		for _, name := range names {
			if !ready[name] {
				return false, err
			}
		}
		return true, nil
	})
	return err
}
