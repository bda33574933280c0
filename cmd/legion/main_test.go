package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

func newTestRoot(t *testing.T) (*cobra.Command, *bytes.Buffer) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("DOCKER_HOST", "unix://"+t.TempDir()+"/nobody")
	var out bytes.Buffer
	docker, err := command.NewDockerCli(command.WithCombinedStreams(&out), command.WithBaseContext(context.Background()))
	if err != nil {
		t.Fatal(err)
	}
	root, opts := newRoot(docker)
	if err := docker.Initialize(opts); err != nil {
		t.Fatal(err)
	}
	return root, &out
}

// No text that names this program by Docker's name is left in the help.
func TestHelpSaysLegion(t *testing.T) {
	root, out := newTestRoot(t)
	visit(root, func(c *cobra.Command) {
		out.Reset()
		if err := c.Usage(); err != nil {
			t.Errorf("%s: %v", c.CommandPath(), err)
		}
		if strings.Contains(out.String(), "Usage:  docker") || strings.Contains(c.Short, "Show the Docker") || strings.Contains(out.String(), "\n  docker ") {
			t.Errorf("%s:\n%s", c.CommandPath(), out)
		}
		if line, _, _ := strings.Cut(out.String(), "\n"); strings.Contains(line, "[flags]") && strings.Contains(line, "[OPTIONS]") {
			t.Errorf("options are named twice: %s", line)
		}
		if !strings.HasPrefix(c.CommandPath(), "legion") {
			t.Errorf("command %s", c.CommandPath())
		}
	})
}

func TestEveryDockerCommandIsThere(t *testing.T) {
	root, _ := newTestRoot(t)
	for _, name := range []string{"swarm init", "service create", "node ls", "stack deploy", "config create", "secret create", "image load", "container exec",
		"network create", "volume ls", "system df", "run", "ps", "version", "info", "login", "context use", "daemon", "service stop", "service start", "service restart"} {
		if c, _, err := root.Find(strings.Fields(name)); err != nil || c.CommandPath() != "legion "+name {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSayLegion(t *testing.T) {
	for in, want := range map[string]string{
		`Use "docker swarm init" or 'docker swarm join'`: `Use "legion swarm init" or 'legion swarm join'`,
		"    docker swarm join --token X 1.2.3.4:2377":   "    legion swarm join --token X 1.2.3.4:2377",
		"docker.io/library/docker :latest":               "docker.io/library/docker :latest",
	} {
		if got := sayLegion(in); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	var out bytes.Buffer
	w := &legionWriter{to: &out}
	for _, part := range []string{"run:\n    dock", "er swarm join X\n", "\n"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	if out.String() != "run:\n    legion swarm join X\n\n" {
		t.Errorf("%q", out.String())
	}
}

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("x"), 1},
		{cli.StatusError{StatusCode: 3}, 3},
		{fmt.Errorf("wrapped: %w", cli.StatusError{StatusCode: 125}), 125},
		{terminated{syscall.SIGINT}, 130},
		{fmt.Errorf("wrapped: %w", terminated{syscall.SIGTERM}), 143},
	} {
		if got := exitStatus(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

func TestPidfile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "run", "legion.pid")
	remove, err := writePidfile(name)
	if err != nil {
		t.Fatal(err)
	}
	if readPid(name) != os.Getpid() {
		t.Errorf("pid %d", readPid(name))
	}
	remove()
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("not removed: %v", err)
	}
	// Numbers that are no daemon's: nobody's, nonsense, and another program's.
	for _, stale := range []string{"", "x", "-1", "4194304", strconv.Itoa(os.Getppid())} {
		if err := os.WriteFile(name, []byte(stale), 0o600); err != nil {
			t.Fatal(err)
		}
		remove, err := writePidfile(name)
		if err != nil {
			t.Fatalf("%q: %v", stale, err)
		}
		// A file that another daemon has written since is not ours to remove.
		if err := os.WriteFile(name, []byte("1"), 0o600); err != nil {
			t.Fatal(err)
		}
		if remove(); readPid(name) != 1 {
			t.Errorf("%q: another's file was removed", stale)
		}
	}
}

func TestNotifySystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notifySystemd("READY=1"); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	name := filepath.Join(t.TempDir(), "s")
	t.Setenv("NOTIFY_SOCKET", name)
	if err := notifySystemd("READY=1"); err == nil {
		t.Error("nobody listens, and no error")
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if err := notifySystemd("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 20)
	if n, err := c.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestDaemonValidate(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.json")
	if err := os.WriteFile(file, []byte(`{"nonsense":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--validate"}, ""},
		{[]string{"--validate", "--config-file", file}, "nonsense"},
		{[]string{"--validate", "--config-file", file + "x"}, "no such file"},
		{[]string{"--validate", "--bogus"}, "unknown flag: --bogus\nSee 'legion daemon --help'."},
		{[]string{"--validate", "extra"}, "extra"},
	} {
		cmd := newDaemonCommand()
		cmd.SetArgs(c.args)
		err := cmd.Execute()
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v, want %q", c.args, err, c.says)
		}
	}
}

// TestMachineCompletion: a shell offers machines where machines are meant, and what
// else a word may be.
func TestMachineCompletion(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("MACHINE_STORAGE_PATH", dir)
	for _, m := range []string{"m1", "w1"} {
		if err := os.MkdirAll(dir+"/machines/"+m, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ssh", ""}, "m1\nw1\n:4"},
		{[]string{"disconnect", "m1", "--from", ""}, "m1\nw1\n:4"},
		{[]string{"connect", "m1", "--to", ""}, "m1\nw1\n:4"},
		{[]string{"create", "--driver", ""}, "local\nssh\n:4"},
		{[]string{"env", "--shell", ""}, "bash\nzsh\nfish\ncsh\ntcsh\npowershell\ncmd\nemacs\nnone\n:4"},
		{[]string{"scp", "w"}, "w1:\n:2"},
		{[]string{"scp", "./f"}, ":2"}, // the shell offers files
	} {
		root, out := newTestRoot(t)
		root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd, "machine"}, c.args...))
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(out.String(), "Completion ended"); strings.TrimSpace(got) != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
}
