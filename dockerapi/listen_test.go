package dockerapi

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestListenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	used := filepath.Join(dir, "used")
	l, err := Listen(t.Context(), ListenConfig{Address: "unix://" + used})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, q := range []struct {
		cfg ListenConfig
		err string
	}{
		{ListenConfig{Address: "x"}, "want unix:///path or tcp://host:port"},
		{ListenConfig{Address: "fd://"}, "want unix"},
		{ListenConfig{Address: "npipe://x"}, "npipe is not supported"},
		{ListenConfig{Address: "tcp://0.0.0.0:0"}, "refusing to listen"},
		{ListenConfig{Address: "tcp://:0"}, "refusing to listen"},
		{ListenConfig{Address: "tcp://[::]:0"}, "refusing to listen"},
		{ListenConfig{Address: "tcp://0.0.0.0:0", TLS: &tls.Config{}}, "--tlsverify"},
		{ListenConfig{Address: "unix://" + file}, "no socket"},
		{ListenConfig{Address: "unix://" + used}, "another daemon answers there"},
		{ListenConfig{Address: "unix://" + dir + "/new", Group: "no-such-group"}, "the socket's group"},
		{ListenConfig{Address: "unix://" + dir + "/no/folder"}, "no such file"},
	} {
		l, err := Listen(t.Context(), q.cfg)
		if err == nil {
			_ = l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), q.err) {
			t.Errorf("%s: %v, want %q", q.cfg.Address, err, q.err)
		}
	}
	if _, err := os.Stat(file); err != nil {
		t.Error("the file in the way is gone")
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	// A daemon that was killed leaves its socket behind.
	old, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = old.Close()
	l, err := Listen(t.Context(), ListenConfig{Address: "unix://" + path, Group: "0"})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", st.Mode())
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || sys.Gid != 0 {
		t.Errorf("owner %+v", st.Sys())
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) > 0 {
		t.Errorf("left behind: %s", left)
	}
}

// pair makes a CA and a certificate for server and client.
func pair(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestListenTLS(t *testing.T) {
	cert, pool := pair(t)
	l, err := Listen(t.Context(), ListenConfig{Address: "tcp://127.0.0.1:0", TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}})
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := newServer(t, f)
	go func() { done <- s.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	get := func(c *tls.Config) error {
		tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+l.Addr().String()+"/_ping", nil)
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(&tls.Config{RootCAs: pool}); err == nil {
		t.Error("a client without a certificate got in")
	}
	mine := &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}}
	if err := get(mine); err != nil {
		t.Error(err)
	}

	// Attach over TLS: half-close is close_notify.
	conn, err := tls.Dial("tcp", l.Addr().String(), mine)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /containers/web/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\nabc")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	_ = conn.CloseWrite()
	if all, err := io.ReadAll(br); err != nil || string(all) != "\x01\x00\x00\x00\x00\x00\x00\x03ABC" {
		t.Errorf("%q, %v", all, err)
	}
}

// A client that never finishes its body is sent away.
func TestSlowBody(t *testing.T) {
	s := newServer(t, newFake(), func(c *Config) { c.BodyTimeout = 20 * time.Millisecond })
	conn, err := net.Dial("unix", serve(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "POST /services/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("status %s", resp.Status)
	}
}

// TestProfiles: they are served only when they were asked for.
func TestProfiles(t *testing.T) {
	for _, on := range []bool{false, true} {
		s := newServer(t, newFake(), func(c *Config) { c.Profile = on })
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("GET", "/debug/pprof/goroutine?debug=1", nil))
		if found := w.Code == http.StatusOK && strings.Contains(w.Body.String(), "goroutine profile"); found != on {
			t.Errorf("profiles %v: status %d", on, w.Code)
		}
	}
}
