package ca

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// MaxCFSSLResponse bounds what an external CA may answer.
const MaxCFSSLResponse = 1 << 20

// crossProfile is the profile by which an external CA signs another root.
const crossProfile = "CA"

// cfsslRequest is the body of a request to sign, of CFSSL's API "authsign/sign".
type cfsslRequest struct {
	Hosts   []string      `json:"hosts"`
	CSR     string        `json:"certificate_request"`
	Subject *cfsslSubject `json:"subject,omitempty"` // nil: the request's
	Profile string        `json:"profile,omitempty"`
}

type cfsslSubject struct {
	CN    string      `json:"CN"`
	Names []cfsslName `json:"names"`
}

type cfsslName struct {
	O  string `json:"O,omitempty"`
	OU string `json:"OU,omitempty"`
}

// CFSSLRequest is what an external CA is asked for a node's certificate: the key
// is the request's, the names are given here.
func CFSSLRequest(csrPEM []byte, id Identity) ([]byte, error) {
	if err := CheckRequest(csrPEM); err != nil {
		return nil, err
	}
	ou := OU(id.Role)
	names := []string{id.NodeID, ou}
	if id.Role == swarm.NodeRoleManager {
		names = append(names, AuthorityName)
	}
	return json.Marshal(cfsslRequest{
		Hosts: names, CSR: string(csrPEM),
		Subject: &cfsslSubject{CN: id.NodeID, Names: []cfsslName{{O: id.Cluster, OU: ou}}},
	})
}

// CFSSLCrossRequest is what the present root's external CA is asked to vouch for
// the next root. Unavailable when the next root's key, which the request is
// signed with, is not here.
func CFSSLCrossRequest(next *Root) ([]byte, error) {
	if next.key == nil {
		return nil, api.Errorf(api.Unavailable, "the new root CA's key is not here: give it with --ca-key")
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: next.certs[0].RawSubject}, next.key)
	if err != nil {
		return nil, err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der})
	return json.Marshal(cfsslRequest{CSR: string(csr), Profile: crossProfile})
}

type cfsslResponse struct {
	Success bool `json:"success"`
	Result  struct {
		Certificate string `json:"certificate"`
	} `json:"result"`
	Errors []struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
}

// CFSSLCertificate reads an external CA's answer: the certificate in PEM.
func CFSSLCertificate(body []byte) ([]byte, error) {
	var r cfsslResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, api.Errorf(api.Unavailable, "external CA: malformed answer: %w", err)
	}
	if !r.Success {
		why := "without a reason"
		if len(r.Errors) > 0 {
			why = fmt.Sprintf("%q (code %d)", clip(r.Errors[0].Message), r.Errors[0].Code)
		}
		return nil, api.Errorf(api.PermissionDenied, "external CA: it refused: %s", why)
	}
	if r.Result.Certificate == "" {
		return nil, api.Errorf(api.Unavailable, "external CA: its answer has no certificate")
	}
	return []byte(r.Result.Certificate), nil
}

// clip bounds what of a peer's text is shown.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most]
	}
	return s
}

// Accept checks what an external CA issued: it must be of this root, for exactly
// that identity and request. It returns it with what it takes to verify it
// during a rotation.
func (r *Root) Accept(certPEM, csrPEM []byte, want Identity, now time.Time) ([]byte, error) {
	leaf, id, err := r.Verify(certPEM, now)
	if err != nil {
		return nil, api.Errorf(api.Invalid, "external CA: %w", err)
	}
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	switch {
	case id != want:
		return nil, api.Errorf(api.Invalid, "external CA: its certificate is for node %q as %s of swarm %q, not for node %s as %s of swarm %s",
			id.NodeID, id.Role, id.Cluster, want.NodeID, want.Role, want.Cluster)
	case leaf.IsCA:
		return nil, api.Errorf(api.Invalid, "external CA: its certificate for node %s is a certificate authority", want.NodeID)
	case !sameKey(leaf.PublicKey, csr.PublicKey):
		return nil, api.Errorf(api.Invalid, "external CA: its certificate has another key than node %s asked for", want.NodeID)
	}
	if want.Role == swarm.NodeRoleManager && leaf.VerifyHostname(ManagerOU) != nil {
		return nil, api.Errorf(api.Invalid, "external CA: its certificate is not good for the name %s", ManagerOU)
	}
	return bytes.Join([][]byte{bytes.TrimRight(certPEM, "\n"), r.chain}, []byte("\n")), nil
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
