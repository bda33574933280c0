package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ownNetwork says that this process has a network namespace of its own.
const ownNetwork = "LEGION_TEST_OWN_NETWORK"

// TestMain runs the tests in a network namespace of their own, where every port
// is free whatever runs on this machine, and which takes all that daemons made
// in it along when it ends.
func TestMain(m *testing.M) {
	switch {
	case os.Geteuid() != 0: // nothing here runs without root
	case os.Getenv(ownNetwork) == "":
		os.Exit(inOwnNetwork())
	default:
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// inOwnNetwork runs this program again and returns its exit status.
func inOwnNetwork() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownNetwork+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "tests in a network namespace:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(s) //nolint:errcheck // nothing was written
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
