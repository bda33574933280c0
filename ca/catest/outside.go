// Package catest has an external CA for tests: a real HTTPS server that speaks
// CFSSL's protocol.
package catest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legion-swarm/legion/ca"
)

// Outside is an external CA: it signs for those who show a certificate that it
// trusts. Set its fields while nobody asks.
type Outside struct {
	*httptest.Server
	// Answer, if set, may answer in place of a signature; it reports whether it did.
	Answer func(w http.ResponseWriter) bool
	// Change, if set, changes what is signed.
	Change func(*x509.Certificate)

	cert   *x509.Certificate
	key    any
	signed atomic.Int64
}

// Signed returns how many certificates it has signed for others.
func (o *Outside) Signed() int { return int(o.signed.Load()) }

func parsePEM[T any](t testing.TB, b []byte, parse func([]byte) (T, error)) T {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("no PEM")
	}
	v, err := parse(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Serve begins an external CA for the root, which has its key, until the test
// ends. Clients need a certificate of the root or of one of others.
func Serve(t testing.TB, root *ca.Root, others ...*ca.Root) *Outside {
	t.Helper()
	return serve(t, tls.RequireAndVerifyClientCert, root, others...)
}

// ServeAnyone is Serve for clients without certificate too.
func ServeAnyone(t testing.TB, root *ca.Root) *Outside {
	t.Helper()
	return serve(t, tls.VerifyClientCertIfGiven, root)
}

func serve(t testing.TB, auth tls.ClientAuthType, root *ca.Root, others ...*ca.Root) *Outside {
	t.Helper()
	clients := x509.NewCertPool()
	for _, r := range append(others, root) {
		clients.AddCert(parsePEM(t, r.CertPEM(), x509.ParseCertificate))
	}
	keyPEM, err := root.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	o := &Outside{cert: parsePEM(t, root.CertPEM(), x509.ParseCertificate), key: parsePEM(t, keyPEM, x509.ParsePKCS8PrivateKey)}
	o.Server = httptest.NewUnstartedServer(o)
	o.TLS = &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{o.own(t)},
		ClientAuth: auth, ClientCAs: clients,
	}
	o.Config.ErrorLog = log.New(t.Output(), "", 0)
	o.StartTLS()
	t.Cleanup(o.Close)
	return o
}

// own is the server's certificate.
func (o *Outside) own(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := o.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "external CA"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (o *Outside) sign(c *x509.Certificate, key any) ([]byte, error) {
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	if !c.IsCA {
		c.KeyUsage = x509.KeyUsageDigitalSignature
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return x509.CreateCertificate(rand.Reader, c, o.cert, key, o.key)
}

// ServeHTTP implements http.Handler.
func (o *Outside) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		return
	}
	if o.Answer != nil && o.Answer(w) {
		return
	}
	cert, err := o.handle(r)
	reply := map[string]any{"success": err == nil, "errors": []any{}, "messages": []any{}}
	if err != nil {
		reply["errors"] = []any{map[string]any{"code": 5000, "message": err.Error()}}
	} else {
		reply["result"] = map[string]string{"certificate": string(cert)}
		o.signed.Add(1)
	}
	_ = json.NewEncoder(w).Encode(reply)
}

func (o *Outside) handle(r *http.Request) ([]byte, error) {
	var req struct {
		Hosts   []string
		CSR     string `json:"certificate_request"`
		Profile string
		Subject struct {
			CN    string
			Names []struct{ O, OU string }
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return nil, err
	}
	block, _ := pem.Decode([]byte(req.CSR))
	if block == nil {
		return nil, errors.New("no request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{Subject: csr.Subject, DNSNames: req.Hosts, BasicConstraintsValid: true}
	if req.Subject.CN != "" {
		c.Subject = pkix.Name{CommonName: req.Subject.CN}
		for _, n := range req.Subject.Names {
			c.Subject.Organization, c.Subject.OrganizationalUnit = []string{n.O}, []string{n.OU}
		}
	}
	if req.Profile == "CA" {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
	}
	if o.Change != nil {
		o.Change(c)
	}
	der, err := o.sign(c, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
