package ca

import (
	"crypto/x509"
	"time"
)

// RenewAt says when to renew a certificate: at a point between half and four
// fifths of its life, which random (in [0,1)) picks, so that the nodes of a
// cluster don't all come at once. A certificate past that point is due at once.
func RenewAt(cert *x509.Certificate, random float64) time.Time {
	from := cert.NotBefore.Add(Backdate)
	life := cert.NotAfter.Sub(from)
	if life <= 0 {
		return from
	}
	return from.Add(life/2 + time.Duration(float64(life)*0.3*random))
}
