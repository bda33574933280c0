package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Bounds of waiting; what is waited for takes a fraction of them.
const (
	startTimeout   = 30 * time.Second
	stopTimeout    = 30 * time.Second
	commandTimeout = 90 * time.Second
	settleTimeout  = 60 * time.Second
	pollInterval   = 50 * time.Millisecond
	root           = ".." // of the repository
)

// node is a daemon with roots of its own.
type node struct {
	dir, data, exec, socket string
	http                    *http.Client

	via   []string // what the daemon is run through: a command that runs another
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd has ended
}

// newNode returns a node that is not started, and removes it at the end.
func newNode(t *testing.T) *node {
	t.Helper()
	needBinary(t)
	dir, err := os.MkdirTemp("/var/tmp", "legion-test-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{dir: dir, data: dir + "/data", exec: dir + "/exec", socket: dir + "/sock"}
	n.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", n.socket)
		},
	}}
	t.Cleanup(func() { n.remove(t) })
	return n
}

// startedNode returns a node that answers; swarmNode one that is a swarm.
func startedNode(t *testing.T, flags ...string) *node {
	t.Helper()
	n := newNode(t)
	n.start(t, flags...)
	return n
}

func swarmNode(t *testing.T, flags ...string) *node {
	t.Helper()
	n := startedNode(t, flags...)
	n.docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1")
	return n
}

// needBinary skips a test where nodes can't run and fails it where one should.
func needBinary(t *testing.T) {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("a node needs root")
	}
	if _, err := os.Stat(root + "/bin/legion"); err != nil {
		t.Fatal("bin/legion is missing: run make")
	}
}

func legionBinary(t *testing.T) string {
	t.Helper()
	return mustAbs(t, root+"/bin/legion")
}

func mustAbs(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// daemonArgs are those of "legion daemon" for this node.
func (n *node) daemonArgs(flags ...string) []string {
	return append([]string{"daemon", "--data-root", n.data, "--exec-root", n.exec, "--pidfile", n.dir + "/pid", "-H", "unix://" + n.socket}, flags...)
}

// spawn starts the daemon and does not wait for it.
func (n *node) spawn(t *testing.T, flags ...string) {
	t.Helper()
	log, err := os.OpenFile(n.dir+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	n.launch(t, append([]string{legionBinary(t)}, n.daemonArgs(flags...)...), nil, log)
}

// launch starts the node's process.
func (n *node) launch(t *testing.T, args, env []string, log *os.File) {
	t.Helper()
	args = append(slices.Clone(n.via), args...)
	n.cmd = exec.Command(args[0], args[1:]...)
	n.cmd.Stdout, n.cmd.Stderr, n.cmd.Env = log, log, append(os.Environ(), env...)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is the test's, not the daemon's
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(n.cmd, n.ended)
}

// start runs the daemon until it answers.
func (n *node) start(t *testing.T, flags ...string) {
	t.Helper()
	n.spawn(t, flags...)
	n.awaitAnswer(t)
}

func (n *node) awaitAnswer(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(startTimeout)
	for !n.answers() {
		select {
		case <-n.ended:
			t.Fatalf("the daemon ended: %v\n%s", n.cmd.ProcessState, n.logTail())
		case <-time.After(pollInterval):
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not answer after %v\n%s", startTimeout, n.logTail())
		}
	}
}

func (n *node) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://legion/_ping", nil)
	if err != nil {
		return false
	}
	resp, err := n.http.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode == http.StatusOK
}

// running reports whether the daemon that was started last has not ended.
func (n *node) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// signal sends one, waits for the end and returns the exit status.
func (n *node) signal(t *testing.T, s syscall.Signal) int {
	t.Helper()
	n.http.CloseIdleConnections()
	if err := n.cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal the daemon: %v\n%s", err, n.logTail())
	}
	select {
	case <-n.ended:
	case <-time.After(stopTimeout):
		_ = n.cmd.Process.Signal(syscall.SIGQUIT) // its stacks go to the log
		<-n.ended
		t.Fatalf("the daemon did not end within %v of %v\n%s", stopTimeout, s, n.logTail())
	}
	return n.cmd.ProcessState.ExitCode()
}

// stop ends the daemon as an administrator does.
func (n *node) stop(t *testing.T) {
	t.Helper()
	if status := n.signal(t, syscall.SIGTERM); status != 0 {
		t.Fatalf("SIGTERM: exit status %d, want 0\n%s", status, n.logTail())
	}
}

// crash ends the daemon as a lack of memory does.
func (n *node) crash(t *testing.T) {
	t.Helper()
	n.signal(t, syscall.SIGKILL)
}

// remove ends the daemon and checks that erase leaves nothing of the node.
func (n *node) remove(t *testing.T) {
	if n.running() {
		n.http.CloseIdleConnections()
		_ = n.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-n.ended:
		case <-time.After(stopTimeout):
			_ = n.cmd.Process.Kill()
			<-n.ended
			t.Errorf("the daemon did not end within %v of SIGTERM", stopTimeout)
		}
	}
	if t.Failed() {
		t.Logf("the daemon's log:\n%s", n.logTail())
	}
	if out, err := exec.Command(root+"/scripts/erase", n.data, n.exec).CombinedOutput(); err != nil {
		t.Errorf("erase: %v\n%s", err, out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	if bytes.Contains(mounts, []byte(n.dir+"/")) {
		t.Errorf("mounts of %s are left", n.dir)
	}
	if l := keepersOf(n.exec); len(l) > 0 {
		t.Errorf("keepers are left: %v", l)
	}
	if err := os.RemoveAll(n.dir); err != nil {
		t.Error(err)
	}
}

// keepersOf are the processes that hold what does not end with an exec root's daemon.
func keepersOf(exec string) (pids []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		if b, err := os.ReadFile(name); err == nil && strings.HasSuffix(string(b), "\x00"+exec+"/keeper.sock\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// logTail is what the daemon said last.
func (n *node) logTail() string {
	b, err := os.ReadFile(n.dir + "/log")
	if err != nil {
		return err.Error()
	}
	const most = 6 << 10
	return string(b[max(0, len(b)-most):])
}

// command runs a client with this node as its host and returns what it wrote
// to standard output. The error has what it wrote to standard error.
func (n *node) command(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+n.socket, "DOCKER_CONFIG="+n.dir+"/client", "DOCKER_CLI_HINTS=false", "DOCKER_CONTEXT=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", commandTimeout)
	}
	if err != nil {
		err = &commandError{err: err, name: name, args: args, stderr: strings.TrimSpace(stderr.String())}
	}
	return stdout.String(), err
}

// commandError is a client's failure.
type commandError struct {
	err    error
	name   string
	args   []string
	stderr string
}

func (e *commandError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", filepath.Base(e.name), strings.Join(e.args, " "), e.err, e.stderr)
}

// status returns the client's exit status.
func (e *commandError) status() int {
	var exit *exec.ExitError
	if errors.As(e.err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

// docker runs the stock client, which must succeed.
func (n *node) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command("docker", args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// legion runs our own client, which must succeed.
func (n *node) legion(t *testing.T, args ...string) string {
	t.Helper()
	out, err := n.command(legionBinary(t), args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// dockerFails runs the stock client, which must fail; it returns the message.
func (n *node) dockerFails(t *testing.T, args ...string) *commandError {
	t.Helper()
	out, err := n.command("docker", args...)
	var failed *commandError
	if !errors.As(err, &failed) {
		t.Fatalf("docker %s succeeded: %s", strings.Join(args, " "), out)
	}
	return failed
}

// await polls until the check returns nil, for at most settleTimeout.
func await(t *testing.T, what string, check func() error) time.Duration {
	t.Helper()
	return awaitFor(t, settleTimeout, what, check)
}

func awaitFor(t *testing.T, most time.Duration, what string, check func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := check()
		took := time.Since(start)
		if err == nil {
			return took
		}
		if took > most {
			t.Fatalf("%s: not after %v: %v", what, most, err)
		}
		time.Sleep(pollInterval)
	}
}
