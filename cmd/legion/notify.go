package main

import (
	"fmt"
	"net"
	"os"
)

// notifySystemd tells a service manager that asked for it (NOTIFY_SOCKET, see
// sd_notify(3)) how far the daemon is: READY=1, RELOADING=1, STOPPING=1.
func notifySystemd(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd %s: %w", state, err)
	}
	return nil
}
