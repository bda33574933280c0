package ssh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"time"
)

// lifetime of a machine's certificates. They can't be renewed but by creating
// the machine again.
const lifetime = 10 * 365 * 24 * time.Hour

// certificates let clients and one machine's daemon know each other. The root's
// key is not kept.
type certificates struct {
	CA, ServerCert, ServerKey, ClientCert, ClientKey []byte // PEM
}

// issue makes certificates for a machine that is reached at host.
func issue(name, host string, now time.Time) (certificates, error) {
	var c certificates
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return c, err
	}
	root, err := template(name+" CA", now)
	if err != nil {
		return c, err
	}
	root.IsCA, root.BasicConstraintsValid, root.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return c, err
	}
	c.CA = block("CERTIFICATE", der)

	server, err := template(name, now)
	if err != nil {
		return c, err
	}
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.DNSNames = []string{"localhost"}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	if ip := net.ParseIP(host); ip != nil {
		server.IPAddresses = append(server.IPAddresses, ip)
	} else {
		server.DNSNames = append(server.DNSNames, host)
	}
	client, err := template("client of "+name, now)
	if err != nil {
		return c, err
	}
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	var serverErr, clientErr error
	c.ServerCert, c.ServerKey, serverErr = sign(server, root, rootKey)
	c.ClientCert, c.ClientKey, clientErr = sign(client, root, rootKey)
	return c, errors.Join(serverErr, clientErr)
}

func template(name string, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"legion-machine"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
	}, nil
}

func sign(t, root *x509.Certificate, rootKey *ecdsa.PrivateKey) (cert, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, t, root, k.Public(), rootKey)
	if err != nil {
		return nil, nil, err
	}
	kder, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return nil, nil, err
	}
	return block("CERTIFICATE", der), block("EC PRIVATE KEY", kder), nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
