package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// machines is a fleet of local machines in a storage folder of its own.
type machines struct {
	dir  string // the storage folder
	work string // for the test's own files
}

// newMachines returns an empty fleet, and checks at the end that nothing of it
// is left after rm -f.
func newMachines(t *testing.T) *machines {
	t.Helper()
	needBinary(t)
	dir, err := os.MkdirTemp("/var/tmp", "legion-test-m")
	if err != nil {
		t.Fatal(err)
	}
	m := &machines{dir: dir + "/storage", work: dir}
	t.Cleanup(func() {
		if names := strings.Fields(m.try("ls", "-q").stdout); len(names) > 0 {
			if t.Failed() {
				for _, n := range names {
					log, _ := os.ReadFile(m.path(n, "daemon.log"))
					t.Logf("daemon's log of %s:\n%s", n, log[max(0, len(log)-4<<10):])
				}
			}
			m.run(t, append([]string{"rm", "-f"}, names...)...)
		}
		m.traceless(t)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

type outcome struct {
	stdout, stderr string
	err            error
	took           time.Duration
}

// try runs legion machine.
func (m *machines) try(args ...string) outcome {
	cmd := exec.Command(root+"/bin/legion", append([]string{"machine"}, args...)...)
	cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.dir, "DOCKER_HOST=", "SHELL=/bin/bash")
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	began := time.Now()
	err := cmd.Run()
	return outcome{out.String(), bad.String(), err, time.Since(began)}
}

// run runs legion machine, which must succeed.
func (m *machines) run(t *testing.T, args ...string) string {
	t.Helper()
	o := m.try(args...)
	if o.err != nil {
		t.Fatalf("machine %q: %v: %s", args, o.err, o.stderr)
	}
	return strings.TrimSpace(o.stdout)
}

// fails runs legion machine, which must fail with the words.
func (m *machines) fails(t *testing.T, args []string, words ...string) {
	t.Helper()
	o := m.try(args...)
	if o.err == nil {
		t.Errorf("machine %q succeeded", args)
	}
	for _, w := range words {
		contains(t, o.stderr, w)
	}
}

func (m *machines) path(name, file string) string {
	return filepath.Join(m.dir, "machines", name, file)
}

// node is the machine's, for clients.
func (m *machines) node(name string) *node {
	return &node{dir: m.work, socket: m.path(name, "legion.sock")}
}

// hears reports whether one machine reaches port 8080 of another.
func (m *machines) hears(from, to string) error {
	o := m.try("ssh", from, "curl -sS -m 2 http://"+to+":8080/")
	if o.err != nil {
		return fmt.Errorf("%w: %s", o.err, o.stderr)
	}
	if !strings.Contains(o.stdout, to) {
		return fmt.Errorf("not an answer of %s: %s", to, o.stdout)
	}
	return nil
}

// traceless checks that no process, mount, cgroup, device, rule or file is left.
func (m *machines) traceless(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(m.dir)) {
		t.Error("a mount is left")
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if b, err := os.ReadFile(c); err == nil && bytes.Contains(b, []byte(m.dir+"/")) {
			t.Errorf("a process is left: %s", bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
	if _, err := os.Stat(m.dir); err == nil {
		t.Error("the storage folder is left")
	}
	mark := mark(m.dir)
	out, err := exec.Command("sh", "-c", `find /sys/fs/cgroup -maxdepth 3; ip -o link; nft list tables; ls /run`).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, mark) {
			t.Errorf("left on the host: %s", line)
		}
	}
}

// mark is what the host's names of a fleet carry.
func mark(storage string) string {
	sum := sha256.Sum256([]byte(storage))
	return hex.EncodeToString(sum[:4])
}

func TestMachines(t *testing.T) {
	m := newMachines(t)
	o := m.try("create", "--engine-label", "rack=1", "one", "two", "three")
	if o.err != nil {
		t.Fatalf("%v: %s", o.err, o.stderr)
	}
	t.Logf("three machines in %v", o.took)
	table := m.run(t, "ls")
	for _, w := range []string{"NAME", "SWARM", "one ", "local", "Running", "unix://" + m.path("two", "legion.sock")} {
		contains(t, table, w)
	}
	m.fails(t, []string{"create", "one"}, `machine "one" already exists`)
	if ip := m.run(t, "ip", "one", "two", "three"); ip != "192.168.99.101\n192.168.99.102\n192.168.99.103" && !strings.Contains(ip, "\n192.168.") {
		t.Errorf("addresses %q", ip)
	}

	one := m.node("one")
	one.image(t, "app:1", `"Labels":{}`)
	for _, name := range []string{"two", "three"} {
		m.node(name).docker(t, "image", "load", "-q", "-i", one.dir+"/image.tar")
	}
	t.Run("apart", func(t *testing.T) {
		if got := m.run(t, "ssh", "one", "hostname; cat /etc/hostname; echo $$; ls /run/legion/legion.sock"); !strings.HasPrefix(got, "one\none\n") {
			t.Errorf("inside: %q", got)
		}
		m.run(t, "ssh", "one", "echo mine >/tmp/x; echo mine >/run/x")
		m.fails(t, []string{"ssh", "two", "cat /tmp/x /run/x"}, "/tmp/x", "/run/x")
		if got := one.docker(t, "info", "-f", "{{.Name}} {{.Labels}}"); got != "one [rack=1]" {
			t.Errorf("info: %s", got)
		}
		var exit *exec.ExitError
		if o := m.try("ssh", "two", "exit 7"); !errors.As(o.err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("exit 7: %v", o.err)
		}
		if pids := m.run(t, "ssh", "two", "ls -d /proc/[0-9]* | wc -l"); len(pids) > 2 {
			t.Errorf("%s processes", pids)
		}
		shell := exec.Command("bash", "-c", `eval "$(`+root+`/bin/legion machine env three)" && docker info -f "{{.Name}} $DOCKER_MACHINE_NAME"`)
		shell.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.dir, "SHELL=/bin/bash")
		if out, err := shell.Output(); err != nil || string(out) != "three three\n" {
			t.Errorf("in the environment of three: %s, %v", out, err)
		}
	})
	for _, name := range []string{"one", "two", "three"} {
		m.node(name).docker(t, "run", "-d", "--name", "web", "--restart", "always", "--network", "host", "--memory", "64m", "--entrypoint", "/web", "app:1")
	}
	t.Run("network", func(t *testing.T) {
		for _, pair := range [][2]string{{"one", "two"}, {"two", "three"}, {"three", "one"}} {
			await(t, pair[0]+" reaches "+pair[1], func() error { return m.hears(pair[0], pair[1]) })
		}
		if out, err := exec.Command("curl", "-sS", "-m", "2", "http://"+m.run(t, "ip", "two")+":8080/").CombinedOutput(); err != nil {
			t.Errorf("from the host: %v: %s", err, out)
		}
	})
	t.Run("cuts", func(t *testing.T) { m.testCuts(t) })
	t.Run("power cut", func(t *testing.T) {
		id := one.docker(t, "inspect", "-f", "{{.Id}}", "web")
		address := m.run(t, "ip", "one")
		m.run(t, "kill", "one")
		if s := m.run(t, "status", "one"); s != "Stopped" {
			t.Errorf("state %s", s)
		}
		m.fails(t, []string{"ssh", "one", "true"}, "not running", "legion machine start one")
		m.fails(t, []string{"env", "one"}, "not running")
		m.run(t, "start", "one")
		if got := one.docker(t, "inspect", "-f", "{{.Id}}", "web"); got != id {
			t.Errorf("container %s became %q", id, got)
		}
		if got := m.run(t, "ip", "one"); got != address {
			t.Errorf("address %s became %s", address, got)
		}
		await(t, "its service is back", func() error { return m.hears("two", "one") })
	})
	t.Run("stop and start", func(t *testing.T) {
		m.run(t, "stop", "one", "two")
		contains(t, m.run(t, "ls", "--filter", "state=stopped", "-q"), "one\ntwo")
		m.run(t, "start", "one", "two")
		m.run(t, "restart", "three")
		await(t, "its service is back", func() error { return m.hears("one", "three") })
	})
	t.Run("daemon crashes", func(t *testing.T) {
		m.run(t, "ssh", "two", "kill -9 $(cat /run/legion/legion.pid)")
		await(t, "the daemon is back", func() error {
			if !m.node("two").pings() {
				return fmt.Errorf("no answer")
			}
			return nil
		})
		if err := m.hears("one", "two"); err != nil {
			t.Errorf("the container ended with the daemon: %v", err)
		}
	})
	m.run(t, "rm", "-f", "one", "two", "three")
	m.traceless(t)
}

// pings asks by the stock client, which needs no connection kept.
func (n *node) pings() bool {
	_, err := n.command("docker", "info", "-f", "{{.ID}}")
	return err == nil
}

func (m *machines) testCuts(t *testing.T) {
	silent := func(from, to string) {
		t.Helper()
		if err := m.hears(from, to); err == nil || !strings.Contains(err.Error(), "timed out") {
			t.Errorf("%s to %s: want silence, got %v", from, to, err)
		}
	}
	loud := func(from, to string) {
		t.Helper()
		if err := m.hears(from, to); err != nil {
			t.Errorf("%s to %s: %v", from, to, err)
		}
	}
	m.run(t, "disconnect", "one", "--from", "two")
	silent("one", "two")
	silent("two", "one")
	loud("one", "three")
	m.run(t, "connect", "one", "--to", "two")
	loud("two", "one")
	m.run(t, "disconnect", "three")
	silent("one", "three")
	silent("three", "two")
	loud("one", "two")
	m.fails(t, []string{"connect", "one", "--to", "three"}, "three is disconnected from everything")
	m.run(t, "restart", "three")
	silent("two", "three") // it outlives a restart
	m.run(t, "connect", "three")
	await(t, "three is back", func() error { return m.hears("two", "three") })
	m.fails(t, []string{"disconnect", "one", "--from", "nobody"}, "nobody")
}

// TestMachineThatFails leaves nothing behind, and says why.
func TestMachineThatFails(t *testing.T) {
	m := newMachines(t)
	m.fails(t, []string{"create", "--engine-opt", "nonsense=1", "bad"}, "bad: the daemon ended with status 125", "unknown flag: --nonsense")
	m.traceless(t)
	m.fails(t, []string{"create", "a_b"}, "invalid machine name")
	m.fails(t, []string{"create", "--driver", "cloud", "a"}, "unknown driver")
	m.fails(t, []string{"start", "nobody"}, "does not exist")
	m.fails(t, []string{"rm", "nobody"}, "-y or -f")
	m.traceless(t)

	// Its maker is killed half-way: ls says so, rm -f removes it, and what it
	// had begun to be is gone.
	cmd := exec.Command(root+"/bin/legion", "machine", "create", "half")
	cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+m.dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "it has begun", func() error {
		_, err := os.Stat(m.path("half", "config.json"))
		return err
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Log("it was too fast to be killed")
	} else {
		contains(t, m.run(t, "ls"), "interrupted")
		m.fails(t, []string{"start", "half"}, "never finished")
	}
	m.run(t, "rm", "-f", "half")
	m.traceless(t)
}

// TestMachinesAfterReboot: what a reboot takes away, start makes again.
func TestMachinesAfterReboot(t *testing.T) {
	m := newMachines(t)
	m.run(t, "create", "one", "two")
	m.node("one").docker(t, "volume", "create", "kept")
	m.run(t, "disconnect", "one")
	m.run(t, "kill", "one", "two")
	mark := mark(m.dir)
	lost := "umount /run/legion-machine-" + mark + "/fabric; rm -r /run/legion-machine-" + mark + "; ip link delete lfabric" + mark +
		"; nft delete table ip legion_machine_" + mark + "; rmdir /sys/fs/cgroup/*/legion-machine-" + mark + "/* /sys/fs/cgroup/*/legion-machine-" + mark + " 2>/dev/null; true"
	if out, err := exec.Command("sh", "-c", lost).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m.run(t, "start", "one", "two")
	if got := m.node("one").docker(t, "volume", "ls", "-q"); got != "kept" {
		t.Errorf("volumes %q", got)
	}
	const ssh = "curl -sS -m 2 telnet://two:1"
	contains(t, m.try("ssh", "one", ssh).stderr, "timed out") // still cut
	m.run(t, "connect", "one")
	contains(t, m.try("ssh", "one", ssh).stderr, "couldn't connect") // refused, at once
}

// TestMachineOnUnifiedCgroups: a host that has cgroup version 2 and nothing
// else, as far as this one can play it: a mount namespace where only that is
// mounted. Processes are in a leaf, and a used cgroup does not keep a machine
// from starting again.
func TestMachineOnUnifiedCgroups(t *testing.T) {
	needBinary(t)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Log("all of these tests run on cgroup version 2 here")
		return
	}
	dir, err := os.MkdirTemp("/var/tmp", "legion-test-m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
legion=`+root+`/bin/legion; $legion machine create one
trap '$legion machine rm -f one' EXIT
$legion machine ssh one cat /proc/self/cgroup /proc/1/cgroup | grep ^0:; $legion machine ssh one mount | grep cgroup
$legion machine restart one; $legion machine kill one; $legion machine start one; $legion machine ls
$legion machine rm -f one; find /sys/fs/cgroup -name 'legion-machine-`+mark(dir+"/storage")+`'`)
	cmd.Env = append(os.Environ(), "MACHINE_STORAGE_PATH="+dir+"/storage")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, w := range []string{"0::/init\n0::/init\n", "cgroup2 on /sys/fs/cgroup type cgroup2", "Running"} {
		contains(t, string(out), w)
	}
	if strings.Contains(string(out), "/sys/fs/cgroup/legion-machine") {
		t.Errorf("a cgroup is left: %s", out)
	}
}

// TestMachinesAtOnce: several commands at the same time, on the same fleet.
func TestMachinesAtOnce(t *testing.T) {
	m := newMachines(t)
	const commands = 3
	done := make(chan outcome)
	for i := range commands {
		go func() { done <- m.try("create", fmt.Sprint("a", i), fmt.Sprint("b", i)) }()
	}
	for range commands {
		if o := <-done; o.err != nil {
			t.Errorf("%v: %s", o.err, o.stderr)
		}
	}
	addresses := map[string]bool{}
	for i := range commands {
		for _, n := range []string{"a", "b"} {
			addresses[m.run(t, "ip", fmt.Sprint(n, i))] = true
		}
	}
	if len(addresses) != 2*commands {
		t.Errorf("addresses %v", addresses)
	}
	for _, verb := range []string{"restart", "kill"} {
		go func() { done <- m.try(verb, "a0") }()
	}
	for range 2 {
		if o := <-done; o.err != nil {
			t.Errorf("%v: %s", o.err, o.stderr)
		}
	}
	m.run(t, "start", "a0")
}
