package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"sync/atomic"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// Credentials are a node's certificate, key and root as TLS uses them. They may
// be replaced at any time: new connections take the new ones. Safe for
// concurrent use. The zero value has none yet and refuses connections.
type Credentials struct {
	current atomic.Pointer[identity]
}

type identity struct {
	keys *ca.Keys
	cert tls.Certificate
}

// Set replaces the keys.
func (c *Credentials) Set(k *ca.Keys) error {
	cert, err := k.TLS()
	if err != nil {
		return api.Errorf(api.Invalid, "node certificate: %w", err)
	}
	c.current.Store(&identity{keys: k, cert: cert})
	return nil
}

// Keys returns what was last Set, nil before that.
func (c *Credentials) Keys() *ca.Keys {
	if id := c.current.Load(); id != nil {
		return id.keys
	}
	return nil
}

// Certificate returns the certificate with its key, as crypto/tls asks for it.
func (c *Credentials) Certificate() (*tls.Certificate, error) {
	id := c.current.Load()
	if id == nil {
		return nil, errNoIdentity()
	}
	return &id.cert, nil
}

// ServerConfig returns a server's TLS configuration: clients without certificate
// are let in (they may call what the table says), those with one must have it
// from the root.
func (c *Credentials) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", raftProtocol},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := c.current.Load()
			if id == nil {
				return nil, errNoIdentity()
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS12,
				NextProtos:   []string{"h2", raftProtocol},
				Certificates: []tls.Certificate{id.cert},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    id.keys.Root.Pool(),
			}, nil
		},
	}
}

// ClientConfig returns the TLS configuration to call a manager with the node's
// own certificate. name is what the manager's certificate must be good for:
// ca.ManagerOU or ca.AuthorityName.
func (c *Credentials) ClientConfig(name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		ServerName: name,
		// The standard check is tied to a fixed set of roots; verify does the
		// same with those of the moment.
		InsecureSkipVerify:   true,
		VerifyConnection:     func(s tls.ConnectionState) error { return c.verify(s, name) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate() },
	}
}

func (c *Credentials) verify(s tls.ConnectionState, name string) error {
	id := c.current.Load()
	if id == nil {
		return errNoIdentity()
	}
	if err := verifyServer(s, id.keys.Root, name); err != nil {
		return err
	}
	want := id.keys.Identity().Cluster
	if peer, ok := ca.IdentityOf(s.PeerCertificates[0]); !ok || peer.Cluster != want {
		return api.Errorf(api.PermissionDenied, "the server is not of this swarm (%s)", want)
	}
	return nil
}

func verifyServer(s tls.ConnectionState, root *ca.Root, name string) error {
	if len(s.PeerCertificates) == 0 {
		return api.Errorf(api.Unauthenticated, "the server has no certificate")
	}
	rest := x509.NewCertPool()
	for _, cert := range s.PeerCertificates[1:] {
		rest.AddCert(cert)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: name, Roots: root.Pool(), Intermediates: rest})
	if err != nil {
		return api.Errorf(api.PermissionDenied, "the server is not a manager of this swarm: %w", err)
	}
	return nil
}

// JoinConfig returns the TLS configuration of a node that has no certificate
// yet. With a root the server must be a manager of it; without (nil) anything is
// accepted: only to fetch the root's certificate, which the join token checks.
func JoinConfig(root *ca.Root) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"h2"},
		ServerName:         ca.AuthorityName,
		InsecureSkipVerify: true, // see ClientConfig
		VerifyConnection: func(s tls.ConnectionState) error {
			if root == nil {
				return nil
			}
			return verifyServer(s, root, ca.AuthorityName)
		},
	}
}

func errNoIdentity() error {
	return api.Errorf(api.Unavailable, "this node has no certificate yet")
}
