package bundle

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func buildInit(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Fatal("gcc is needed to test the init program: ", err)
	}
	path := filepath.Join(t.TempDir(), "init")
	out, err := exec.Command(gcc, "-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie", "-o", path, "init/init.c").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func status(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestInitStatus(t *testing.T) {
	path := buildInit(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "noexec"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--", "sh", "-c", "exit 0"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"--", "/bin/sh", "-c", "kill -KILL $$"}, 137},
		{[]string{"--", "no-such-program"}, 127},
		{[]string{"--", "/no/such"}, 127},
		{[]string{"--", filepath.Join(dir, "noexec")}, 126},
		{[]string{"--"}, 125},
		{nil, 125},
		{[]string{"sh", "-c", "(sleep 0.01 &) ; exit 3"}, 3},
	} {
		if got := status(exec.Command(path, c.args...).Run()); got != c.want {
			t.Errorf("%q: status %d, want %d", c.args, got, c.want)
		}
	}
}

func TestInitForwardsSignals(t *testing.T) {
	path := buildInit(t)
	cmd := exec.Command(path, "--", "sh", "-c", `trap 'exit 42' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := func(want string) {
		b := make([]byte, len(want)+1)
		if _, err := out.Read(b); err != nil || string(b[:len(want)]) != want {
			t.Fatalf("read %q, %v; want %q", b, err, want)
		}
	}
	read("ready")
	for _, s := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if s == syscall.SIGUSR1 {
			read("usr1")
		}
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if status(err) != 42 {
			t.Errorf("status %d", status(err))
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Fatal("did not end")
	}
}
