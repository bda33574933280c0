package ssh

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legion-swarm/legion/machine"
)

func valid() Options {
	return Options{Host: "192.0.2.7", User: "root", Port: 22, APIPort: 2376}
}

func TestOptions(t *testing.T) {
	if err := valid().validate(); err != nil {
		t.Error(err)
	}
	for word, change := range map[string]func(*Options){
		"needs --ssh-host": func(o *Options) { o.Host = "" }, "--ssh-host \"-oProxyCommand=x\"": func(o *Options) { o.Host = "-oProxyCommand=x" },
		"--ssh-host \"a;b\"": func(o *Options) { o.Host = "a;b" }, "--ssh-user": func(o *Options) { o.User = "a b" },
		"--ssh-port 0": func(o *Options) { o.Port = 0 }, "--ssh-engine-port 65536": func(o *Options) { o.APIPort = 65536 }, "--ssh-key": func(o *Options) { o.Key = "x" },
	} {
		o := valid()
		change(&o)
		if err := o.validate(); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%+v: %v, want %s", o, err, word)
		}
	}
	o := valid()
	o.Host, o.Key = "fd00::1", "/k"
	if o.url() != "tcp://[fd00::1]:2376" {
		t.Error(o.url())
	}
	want := `-p 22 -l root -o UserKnownHostsFile="/m/k h" -o StrictHostKeyChecking=accept-new -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o LogLevel=ERROR -i /k -o IdentitiesOnly=yes -o BatchMode=yes -T -- fd00::1`
	if got := strings.Join(o.args("/m/k h", false), " "); got != want {
		t.Error(got)
	}
	if got := strings.Join(valid().args("k", true), " "); !strings.HasSuffix(got, "-t -- 192.0.2.7") || strings.Contains(got, "BatchMode") {
		t.Error(got)
	}
}

func TestUname(t *testing.T) {
	for say, want := range map[string]string{"Linux x86_64": "amd64", "Linux aarch64\n": "arm64"} {
		if got, err := machineOf(say); err != nil || got != want {
			t.Errorf("%q: %s, %v", say, got, err)
		}
	}
	for say, word := range map[string]string{"Darwin arm64": "runs Darwin", "Linux vax": "vax", "": "uname says"} {
		if _, err := machineOf(say); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", say, err)
		}
	}
}

func TestScripts(t *testing.T) {
	o := valid()
	script := runScript(o, machine.Engine{Flags: []string{"--label=it's=x"}, Env: []string{"HTTP_PROXY=http://p/$x"}})
	for _, line := range []string{
		"export HTTP_PROXY='http://p/$x'\n",
		`exec '/usr/local/bin/legion' 'daemon' '--host' 'unix:///run/legion/legion.sock' '--host' 'tcp://0.0.0.0:2376' '--tlsverify' '--tlscacert' '/etc/legion/machine-ca.pem' '--tlscert' '/etc/legion/machine-cert.pem' '--tlskey' '/etc/legion/machine-key.pem' '--label=it'\''s=x'` + "\n",
	} {
		if !strings.Contains(script, line) {
			t.Errorf("no %s in:\n%s", line, script)
		}
	}
	// What is sent to a host is at least shell.
	for _, s := range []service{bySystemd(), byHand()} {
		for _, line := range []string{s.start, s.stop, s.kill, s.remove + "; " + uninstall, put(runFile, "755"), script} {
			if out, err := exec.Command("sh", "-nc", line).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", line, err, out)
			}
		}
	}
	h := host{sudo: "sudo -n "}
	if got := h.asRoot("a 'b'"); got != `sudo -n sh -c 'a '\''b'\'''` {
		t.Error(got)
	}
}

func TestClaim(t *testing.T) {
	path := t.TempDir() + "/etc/run"
	var claimed atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if exec.Command("/bin/sh", "-c", claim(path)).Run() == nil {
				claimed.Add(1)
			}
		})
	}
	wg.Wait()
	if claimed.Load() != 1 {
		t.Errorf("%d of 8 claimed it", claimed.Load())
	}
}

func TestCertificates(t *testing.T) {
	now := time.Now()
	for _, host := range []string{"192.0.2.7", "host.example"} {
		c, err := issue("m", host, now)
		if err != nil {
			t.Fatal(err)
		}
		handshake(t, c, c, host, "")
		other, err := issue("m", host, now)
		if err != nil {
			t.Fatal(err)
		}
		stranger := c
		stranger.ClientCert, stranger.ClientKey = other.ClientCert, other.ClientKey
		handshake(t, c, stranger, host, "unknown certificate authority")
		handshake(t, c, c, "another.example", "not another.example")
	}
}

// handshake connects a client with those certificates to a server with these.
func handshake(t *testing.T, server, client certificates, name, word string) {
	t.Helper()
	pair := func(cert, key []byte) []tls.Certificate {
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(server.CA)
	l, err := net.Listen("tcp", "127.0.0.1:0") // a pipe has no room: both ends could be writing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	served := make(chan error, 1)
	go func() {
		s := tls.Server(a, &tls.Config{Certificates: pair(server.ServerCert, server.ServerKey), ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
		err := s.Handshake()
		_ = a.Close()
		served <- err
	}()
	c := tls.Client(b, &tls.Config{Certificates: pair(client.ClientCert, client.ClientKey), RootCAs: pool, ServerName: name, MaxVersion: tls.VersionTLS12})
	err = c.Handshake()
	_ = b.Close()
	if serverErr := <-served; err == nil {
		err = serverErr
	}
	if (err == nil) != (word == "") || err != nil && !strings.Contains(err.Error(), word) {
		t.Errorf("%s: %v, want %q", name, err, word)
	}
}
