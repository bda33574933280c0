package test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// refused runs the daemon, which must end with an error that has the words.
func (n *node) refused(t *testing.T, flags []string, words ...string) {
	t.Helper()
	cmd := exec.Command(legionBinary(t), n.daemonArgs(flags...)...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("%q: the daemon ended with status 0", flags)
	}
	for _, w := range words {
		contains(t, string(out), w)
	}
}

func TestDaemonConfiguration(t *testing.T) {
	n := newNode(t)
	file := func(content string) string {
		name := n.dir + "/daemon.json"
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	n.refused(t, []string{"--nonsense"}, "unknown flag: --nonsense")
	n.refused(t, []string{"argument"}, "argument")
	n.refused(t, []string{"--config-file", n.dir + "/none.json"}, "none.json")
	n.refused(t, []string{"--config-file", file(`{"nonsense":1,"debug":true}`)}, "the following directives don't match any configuration option: nonsense")
	n.refused(t, []string{"--debug", "--config-file", file(`{"debug":true}`)}, "the following directives are specified both as a flag and in the configuration file: debug")
	n.refused(t, []string{"--config-file", file(`{"debug":`)}, "daemon.json", "JSON")
	n.refused(t, []string{"--config-file", file(`{"debug":"yes"}`)}, `"debug"`, "true or false")
	n.refused(t, []string{"-H", "tcp://0.0.0.0:2375"}, "tcp://0.0.0.0:2375", "--tlsverify")
	n.refused(t, []string{"--userns-remap", "x"}, "--userns-remap")
	n.refused(t, []string{"--log-level", "loud"}, "log-level", "loud")

	port := freePort(t)
	n.start(t, "--config-file", file(`{"labels":["rack=1"],"experimental":true,"network-control-plane-mtu":1400}`), "-H", "tcp://127.0.0.1:"+port, "--log-format", "json")
	contains(t, n.docker(t, "info", "-f", "{{.Labels}}"), "rack=1")
	if out, err := exec.Command("docker", "-H", "tcp://127.0.0.1:"+port, "version", "-f", "{{.Server.Version}}").CombinedOutput(); err != nil {
		t.Errorf("over tcp: %v: %s", err, out)
	}
	contains(t, n.logTail(), `network-control-plane-mtu\" has no effect`)

	t.Run("a second daemon on the same data root", func(t *testing.T) {
		other := newNode(t)
		cmd := exec.Command(legionBinary(t), "daemon", "--data-root", n.data, "--exec-root", other.exec, "--pidfile", other.dir+"/pid", "-H", "unix://"+other.socket)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Error("it ended with status 0")
		}
		contains(t, string(out), n.data)
		contains(t, string(out), "in use")
	})
	t.Run("a second daemon with the same pidfile", func(t *testing.T) {
		n.refused(t, nil, "still running", n.dir+"/pid")
		if !n.answers() {
			t.Error("the first one does not answer any more")
		}
	})
	t.Run("reload", func(t *testing.T) {
		file(`{"labels":["rack=2"],"debug":true}`)
		if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, "the new labels", func() error {
			out, err := n.command("docker", "info", "-f", "{{.Labels}} {{.Debug}}")
			if err == nil && strings.TrimSpace(out) != "[rack=2] true" {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
		file(`{"nonsense":1}`)
		if err := n.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, "the refusal in the log", func() error {
			if !strings.Contains(n.logTail(), "nonsense") {
				return fmt.Errorf("not there")
			}
			return nil
		})
		if !n.answers() {
			t.Error("a bad file ended the daemon")
		}
	})
	n.stop(t)
	if _, err := os.Stat(n.dir + "/pid"); err == nil {
		t.Error("the pidfile is left")
	}
	if _, err := os.Stat(n.socket); err == nil {
		t.Error("the socket is left")
	}
}

// TestStalePidfile: a number in a file that is somebody else's process now.
func TestStalePidfile(t *testing.T) {
	n := newNode(t)
	if err := os.WriteFile(n.dir+"/pid", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	n.crash(t)
	n.start(t)
}

// TestReady: a service manager is told when the socket answers.
func TestReady(t *testing.T) {
	n := newNode(t)
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", n.dir+"/notify")
	n.start(t)
	b := make([]byte, 100)
	k, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(b[:k]), "READY=1")
}

// TestFullDisk: what does not fit is refused with a reason, nothing that was
// acknowledged is lost, and the daemon works again once there is room.
func TestFullDisk(t *testing.T) {
	needBinary(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "size=200m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	n := newNode(t)
	n.data = disk + "/data"
	n.start(t)
	n.docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1")
	n.image(t, "app:1", "")
	n.service(t, "web", "app:1", "sleep")

	fill(t, disk+"/filler")
	const full = "no space left on device"
	contains(t, n.dockerFails(t, "load", "-q", "-i", n.dir+"/image.tar").stderr, full)
	// The log has room that it took before: large services use it up.
	kept, refused := 0, ""
	for refused == "" && kept < 1000 {
		status, body := n.api(t, "POST", "/services/create", fmt.Sprintf(
			`{"Name":"s%d","Labels":{"large":%q},"TaskTemplate":{"ContainerSpec":{"Image":"app:1"}},"Mode":{"Replicated":{"Replicas":0}}}`, kept, strings.Repeat("x", 500_000)))
		if status == http.StatusCreated {
			kept++
		} else {
			refused = fmt.Sprint(status, " ", body)
		}
	}
	contains(t, refused, full)
	contains(t, n.docker(t, "info", "--format", "{{.Swarm.Error}}"), full)
	t.Logf("after %d services: %s", kept, refused)
	if err := os.Remove(disk + "/filler"); err != nil {
		t.Fatal(err)
	}
	if !n.running() {
		// A node that can't write its log may end rather than lie; it must come back.
		n.start(t)
	}
	n.awaitReplicas(t, "web", "1/1")
	await(t, "writes succeed again", func() error {
		_, err := n.command("docker", "service", "scale", "-d", "web=2")
		return err
	})
	n.awaitContainers(t, "web", 2)
	// The one that was refused may be there too, as its error says.
	for i := range kept {
		n.inspect(t, fmt.Sprint("s", i), "{{.ID}}")
	}
}

// fill writes a file until nothing more fits beside it.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// freePort is one that nobody listens on now.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}
