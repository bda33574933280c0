package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// TestRootKeyForms reads root keys as openssl writes them.
func TestRootKeyForms(t *testing.T) {
	der := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	certOf := func(key crypto.Signer) []byte {
		t.Helper()
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mine"}, NotAfter: now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
		return block("CERTIFICATE", der(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)))
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1 := block("EC PRIVATE KEY", der(x509.MarshalECPrivateKey(ec)))
	curve := block("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}) // RFC 5480: prime256v1
	for _, c := range []struct {
		name      string
		cert, key []byte
		err       string
	}{
		{"PKCS #8", certOf(ec), block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(ec))), ""},
		{"SEC 1", certOf(ec), sec1, ""},
		{"SEC 1 after its curve", certOf(ec), slices.Concat(curve, sec1), ""},
		{"RSA in PKCS #8", certOf(rs), block("PRIVATE KEY", der(x509.MarshalPKCS8PrivateKey(rs))), ""},
		{"PKCS #1", certOf(rs), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rs)), ""},
		{"only a curve", certOf(ec), curve, "no PEM key"},
		{"encrypted PKCS #8", certOf(ec), block("ENCRYPTED PRIVATE KEY", []byte("x")), "the private key is encrypted"},
		{"encrypted SEC 1", certOf(ec), pem.EncodeToMemory(&pem.Block{
			Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte("x"),
		}), "the private key is encrypted"},
		{"another's", certOf(rs), sec1, "do not belong together"},
		{"a certificate", certOf(ec), certOf(ec), "PEM block CERTIFICATE is no private key"},
	} {
		r, err := ca.ParseRoot(c.cert, c.key)
		if c.err == "" && (err != nil || !r.CanSign()) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.err != "" && (!api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}
