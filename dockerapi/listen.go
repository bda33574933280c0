package dockerapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultPort and DefaultTLSPort are the ports of tcp addresses without one.
const (
	DefaultPort    = "2375"
	DefaultTLSPort = "2376"
)

// ListenConfig says how one address is listened on.
type ListenConfig struct {
	// Address is unix:///path or tcp://host[:port].
	Address string
	// Group owns a unix socket, by name or number; empty: the daemon's own. The
	// socket is readable and writable by owner and group only.
	Group string
	// TLS, when set, is used on tcp and must ask for client certificates unless
	// the host is a loopback address. Without it only loopback hosts are allowed.
	TLS *tls.Config
}

// Listen opens the listener. A unix socket that nobody answers on is replaced;
// closing the listener removes it.
func Listen(ctx context.Context, cfg ListenConfig) (net.Listener, error) {
	scheme, addr, ok := strings.Cut(cfg.Address, "://")
	if !ok || addr == "" {
		return nil, fmt.Errorf("listen on %q: want unix:///path or tcp://host:port", cfg.Address)
	}
	switch scheme {
	case "unix":
		return listenUnix(ctx, addr, cfg.Group)
	case "tcp":
		return listenTCP(ctx, addr, cfg.TLS)
	}
	return nil, fmt.Errorf("listen on %q: %s is not supported: use unix:// or tcp://", cfg.Address, scheme)
}

func listenTCP(ctx context.Context, addr string, secure *tls.Config) (net.Listener, error) {
	addr = strings.TrimSuffix(addr, "/")
	host, port, err := net.SplitHostPort(addr)
	if err != nil { // no port
		host, port = strings.Trim(addr, "[]"), DefaultPort
		if secure != nil {
			port = DefaultTLSPort
		}
	}
	local, err := loopback(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("listen on tcp://%s: %w", addr, err)
	}
	if !local && (secure == nil || secure.ClientAuth != tls.RequireAndVerifyClientCert) {
		return nil, fmt.Errorf("refusing to listen on tcp://%s: whoever reaches it is root on this machine; use --tlsverify with a CA, a certificate and a key, or a loopback address", addr)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return nil, fmt.Errorf("listen on tcp://%s: %w", addr, err)
	}
	if secure == nil {
		return l, nil
	}
	secure = secure.Clone()
	secure.NextProtos = []string{"http/1.1"} // attach and exec take over the connection
	secure.MinVersion = max(secure.MinVersion, tls.VersionTLS12)
	return tls.NewListener(l, secure), nil
}

// loopback tells whether all addresses of the host are loopback. An empty host
// means every address of the machine.
func loopback(ctx context.Context, host string) (bool, error) {
	if host == "" {
		return false, nil
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().IsLoopback(), nil
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false, err
	}
	for _, a := range all {
		if !a.Unmap().IsLoopback() {
			return false, nil
		}
	}
	return len(all) > 0, nil
}

func listenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	if err := replaceSocket(ctx, path); err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	// Nobody may connect between bind and chmod: the umask is the process's, so
	// the socket is made under a private name and renamed when it is ready.
	private := path + "." + strconv.Itoa(os.Getpid())
	_ = os.Remove(private) // of an earlier process with the same pid
	l, err := new(net.ListenConfig).Listen(ctx, "unix", private)
	if err != nil {
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	ul, _ := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	fail := func(err error) (net.Listener, error) {
		_ = l.Close()
		_ = os.Remove(private)
		return nil, fmt.Errorf("listen on unix://%s: %w", path, err)
	}
	if err := os.Chmod(private, 0o660); err != nil {
		return fail(err)
	}
	if err := os.Chown(private, -1, gid); err != nil {
		return fail(fmt.Errorf("give the socket to group %s: %w", group, err))
	}
	if err := os.Rename(private, path); err != nil {
		return fail(err)
	}
	return &unixListener{Listener: l, path: path}, nil
}

// replaceSocket removes a socket that an earlier daemon left, and refuses to
// touch one that is answered or anything that is no socket.
func replaceSocket(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&os.ModeSocket == 0:
		return errors.New("something that is no socket is there: remove it or choose another path")
	}
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return errors.New("another daemon answers there: stop it or choose another path")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("a socket is there and it is not clear whether it is in use: %w", err)
	}
	return os.Remove(path)
}

func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if n, err := strconv.Atoi(group); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("the socket's group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}

// unixListener removes its socket when closed.
type unixListener struct {
	net.Listener
	path string
}

// Addr is the socket's real name, not the one it was bound under.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// Close stops listening and removes the socket.
func (l *unixListener) Close() error {
	err := os.Remove(l.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(l.Listener.Close(), err)
}
