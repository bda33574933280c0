package ca

import (
	"bytes"
	"crypto/x509"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

// Step is what a rotation does next.
type Step struct {
	// Renew are the nodes, by id, that are to be asked for a new request.
	Renew []string
	// Absent are the nodes, by id, that are away for long: they are to be signed
	// a certificate without their help.
	Absent []string
	// Left is how many nodes are not known to have a certificate of the desired
	// root and to trust it, or to have one waiting for them.
	Left int
	// Done says that the rotation can be finished.
	Done bool
	// Again is when to look again though nothing changed; zero: no need.
	Again time.Time
}

// Limits of Next.
const (
	// renewWindow is how many connected nodes renew at once.
	renewWindow = 128
	// reportTime is how long a node has to say that it uses its new certificate,
	// before it is asked again.
	reportTime = time.Minute
	// absentAfter is how long a node must be away, while the rotation is under way,
	// to be taken for absent.
	absentAfter = 10 * time.Second
	// clocksDiffer is by how much managers' clocks may differ without harm.
	clocksDiffer = time.Minute
	// maxBundles bounds what is remembered of the texts that nodes say they trust.
	maxBundles = 1024
)

// Next plans a rotation's next step from what the nodes' objects say. It also
// finds work without rotation: nodes left with a certificate of a root that was
// given up. A node's certificate is the one that it says it uses; an absent
// node's is the one that was signed for it last.
func Next(r *api.RootCA, nodes []*api.Node, now time.Time) (Step, error) {
	desired, err := ParseRoot(Desired(r), nil)
	if err != nil {
		return Step{}, err
	}
	var s Step
	busy := 0
	var idle []*api.Node
	trusted := map[string]bool{} // by bundle; there are few different ones
	for _, n := range nodes {
		if at, away := absentFrom(r, n); away && !waits(at, absentAfter, now) {
			s.absent(desired, n)
			continue
		} else if away && !shows(desired, n) {
			s.again(at)
		}
		if uses(desired, n) {
			bundle := n.Description.TLSInfo.TrustRoot
			ok, seen := trusted[bundle]
			if !seen {
				ok = trusts(desired, bundle)
			}
			if !seen && len(trusted) < maxBundles {
				trusted[bundle] = ok
			}
			if Rotating(r) && !ok {
				s.Left++ // it has been told, and will say so
			}
			continue
		}
		issued := issuedBy(r, desired, n)
		s.Left++
		switch {
		case n.Certificate.State == api.CertificateRotate || n.Certificate.State == api.CertificatePending || n.Certificate.State == api.CertificateRenew:
			busy += connected(n)
		case issued != nil && !n.Certificate.Waiting && waits(issued.NotBefore.Add(Backdate+reportTime), reportTime, now):
			busy += connected(n)
			s.again(issued.NotBefore.Add(Backdate + reportTime))
		case issued != nil && connected(n) == 0: // it will say so when it is back
		default:
			idle = append(idle, n)
		}
	}
	for _, n := range idle {
		if c := connected(n); c == 0 || busy < renewWindow {
			busy += c
			s.Renew = append(s.Renew, n.ID)
		}
	}
	s.Done = Rotating(r) && s.Left == 0
	return s, nil
}

// waits reports whether a wait for so long that ends at a time is not over. One that
// has longer to go began before a clock was set back, and counts as over.
func waits(end time.Time, long time.Duration, now time.Time) bool {
	return now.Before(end) && end.Sub(now) <= long+clocksDiffer
}

func (s *Step) again(at time.Time) {
	if s.Again.IsZero() || at.Before(s.Again) {
		s.Again = at
	}
}

// absentFrom returns when a node that is away begins to count as absent; false
// for one that is there, or whose manager is gone just now.
func absentFrom(r *api.RootCA, n *api.Node) (time.Time, bool) {
	since := n.DownSince
	switch {
	case n.Status.State == swarm.NodeStateDown:
	case n.Status.State != swarm.NodeStateReady && n.Session.ID == "": // it joined, and was never heard of
		since = n.CreatedAt
	default:
		return time.Time{}, false
	}
	if r.Begun.After(since) {
		since = r.Begun
	}
	return since.Add(absentAfter), true
}

// absent plans for a node that is away for long. One for which nothing can be
// signed does not hold the others up: it has to join again.
func (s *Step) absent(desired *Root, n *api.Node) {
	c := &n.Certificate
	switch {
	case shows(desired, n), len(c.CSR) == 0, c.Waiting && c.State == api.CertificateFailed:
	case c.State == api.CertificatePending || c.State == api.CertificateRenew:
		s.Left++ // it is being signed
	default:
		s.Left++
		s.Absent = append(s.Absent, n.ID)
	}
}

// shows reports whether the node is shown with the root, and with no other.
func shows(root *Root, n *api.Node) bool {
	return uses(root, n) && n.Description.TLSInfo.TrustRoot == string(root.CertPEM())
}

func connected(n *api.Node) int {
	if n.Status.State == swarm.NodeStateReady {
		return 1
	}
	return 0
}

// issuedBy returns the certificate that the node was last issued, if the root itself
// signed it. One of a root that this one has vouched for is not meant: the node has to
// have another.
func issuedBy(r *api.RootCA, root *Root, n *api.Node) *x509.Certificate {
	if Rotating(r) && !bytes.Contains(n.Certificate.Cert, bytes.TrimSpace(r.CrossSigned)) {
		return nil // most are not, and signatures take time
	}
	leaf, err := ParseLeaf(n.Certificate.Cert)
	if err != nil || !bytes.Equal(leaf.RawIssuer, root.Subject()) || leaf.CheckSignatureFrom(root.certs[0]) != nil {
		return nil
	}
	return leaf
}

// uses reports whether the node says that its certificate is of the root.
func uses(root *Root, n *api.Node) bool {
	tls := &n.Description.TLSInfo
	return bytes.Equal(tls.CertIssuerPublicKey, root.PublicKey()) && bytes.Equal(tls.CertIssuerSubject, root.Subject())
}

// trusts reports whether a node that trusts the bundle trusts the root: one that
// does not would be lost when others have nothing else to show.
func trusts(root *Root, bundle string) bool {
	certs, err := parseAuthorities([]byte(bundle))
	return err == nil && slices.ContainsFunc(certs, root.certs[0].Equal)
}
