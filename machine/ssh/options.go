package ssh

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Name of the driver.
const Name = "ssh"

// Options are those of create.
type Options struct {
	// Host is a name or an address.
	Host string
	// User must be root, or may use sudo without a password.
	User string
	// Key is the path of a private key; empty: what the ssh command finds.
	Key string `json:",omitempty"`
	// Port is ssh's, APIPort that of the daemon's API.
	Port, APIPort int
}

// Defaults of create.
const (
	DefaultUser    = "root"
	DefaultPort    = 22
	DefaultAPIPort = 2376
)

func (o Options) validate() error {
	const word = "letters, digits and .:_-"
	plain := func(s string) bool {
		return s != "" && !strings.HasPrefix(s, "-") && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-") == ""
	}
	var errs []error
	if o.Host == "" {
		errs = append(errs, errors.New("driver ssh needs --ssh-host: the name or address of the host"))
	} else if !plain(o.Host) {
		errs = append(errs, fmt.Errorf("--ssh-host %q: want %s", o.Host, word))
	}
	if !plain(o.User) {
		errs = append(errs, fmt.Errorf("--ssh-user %q: want %s", o.User, word))
	}
	if o.Key != "" && !filepath.IsAbs(o.Key) {
		errs = append(errs, fmt.Errorf("--ssh-key %q is not an absolute path", o.Key))
	}
	for flag, p := range map[string]int{"--ssh-port": o.Port, "--ssh-engine-port": o.APIPort} {
		if p < 1 || p > 65535 {
			errs = append(errs, fmt.Errorf("%s %d: want a port", flag, p))
		}
	}
	return errors.Join(errs...)
}

func (o Options) url() string { return "tcp://" + net.JoinHostPort(o.Host, strconv.Itoa(o.APIPort)) }

// args of the ssh command before what it shall run. The host's key is pinned
// when it is first seen.
func (o Options) args(knownHosts string, interactive bool) []string {
	a := []string{
		"-p", strconv.Itoa(o.Port), "-l", o.User,
		"-o", "UserKnownHostsFile=" + strconv.Quote(knownHosts), "-o", "StrictHostKeyChecking=accept-new",
		"-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "LogLevel=ERROR",
	}
	if o.Key != "" {
		a = append(a, "-i", o.Key, "-o", "IdentitiesOnly=yes")
	}
	if interactive {
		a = append(a, "-t")
	} else {
		a = append(a, "-o", "BatchMode=yes", "-T")
	}
	return append(a, "--", o.Host)
}
