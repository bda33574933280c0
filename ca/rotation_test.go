package ca_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
)

// machine is a node of a swarm whose root rotates: what is on its disk, and what
// the managers know of it.
type machine struct {
	keys   *ca.Keys
	object *api.Node
	up     bool
	knows  int // how many rotations had ended when it last heard of the root
}

// swarmModel is a swarm as far as its root goes.
type swarmModel struct {
	t        *rapid.T
	now      time.Time
	root     *api.RootCA
	forced   uint64
	machines []*machine
	joined   int
	brought  []*ca.Root // that users have at hand
	checked  map[[2]string]bool
	ended    int // rotations
}

func (s *swarmModel) must(err error) {
	if err != nil {
		s.t.Helper()
		s.t.Fatal(err)
	}
}

func newSwarmModel(t *rapid.T) *swarmModel {
	s := &swarmModel{t: t, now: now(), checked: map[[2]string]bool{}}
	r, err := ca.NewRoot(s.now)
	s.must(err)
	key, err := r.KeyPEM()
	s.must(err)
	s.root = &api.RootCA{Cert: r.CertPEM(), Key: key, Digest: r.Digest()}
	s.brought = []*ca.Root{r}
	for range 2 {
		r, err := ca.NewRoot(s.now)
		s.must(err)
		s.brought = append(s.brought, r)
	}
	for range 2 {
		s.join()
	}
	return s
}

// issue: the machine gets a certificate of the present signer, checked against
// what it trusts.
func (s *swarmModel) issue(m *machine, trust *ca.Root) {
	key, csr, err := ca.NewRequest()
	s.must(err)
	m.object.Certificate = api.Certificate{CSR: csr, State: api.CertificateIssued, Cert: s.sign(m, csr)}
	m.keys, err = ca.NewKeys(trust, m.object.Certificate.Cert, key, s.now)
	s.must(err)
}

func (s *swarmModel) sign(m *machine, csr []byte) []byte {
	signer, err := ca.Signer(s.root)
	s.must(err)
	cert, err := signer.Issue(csr, ca.Identity{NodeID: m.object.ID, Role: swarm.NodeRoleManager, Cluster: "c"}, 24*time.Hour, s.now)
	s.must(err)
	return cert
}

// accepts reports whether the managers take the machine's calls.
func (s *swarmModel) accepts(m *machine) bool {
	managers, err := ca.ParseRoot(ca.Trusted(s.root), nil)
	s.must(err)
	_, _, err = managers.Verify(m.keys.Cert, s.now)
	return err == nil
}

// connect: the machine calls a manager, and when that does not know its
// certificate any more, fetches the one that waits.
func (s *swarmModel) connect(m *machine) {
	if s.accepts(m) {
		return
	}
	keys, err := m.keys.Waiting(m.object.Certificate.Cert, s.now)
	s.must(err)
	if keys == nil {
		s.t.Fatalf("no certificate waits for %s", m.object.ID)
	}
	m.keys = keys
	if !s.accepts(m) {
		s.t.Fatalf("the managers don't accept the certificate that waited for %s", m.object.ID)
	}
}

func (s *swarmModel) join() {
	s.joined++
	m := &machine{up: true, object: &api.Node{Certificate: api.Certificate{State: api.CertificateIssued}}}
	m.object.ID = fmt.Sprint("node", s.joined)
	m.object.CreatedAt, m.knows = s.now, s.ended
	trust, err := ca.ParseRoot(s.root.Cert, nil) // what its token is for
	s.must(err)
	s.issue(m, trust)
	s.machines = append(s.machines, m)
}

// hear: the machine is told what to trust.
func (s *swarmModel) hear(m *machine) {
	root, err := ca.ParseRoot(ca.Trusted(s.root), nil)
	s.must(err)
	if k, err := m.keys.WithRoot(root, s.now); err == nil {
		m.keys = k
	}
	m.knows = s.ended
}

// renew: the machine does what it is asked to.
func (s *swarmModel) renew(m *machine) {
	if m.object.Certificate.State == api.CertificateRotate {
		s.issue(m, m.keys.Root)
	}
}

// report: the managers hear what the machine uses.
func (s *swarmModel) report(m *machine) {
	subject, key := m.keys.Issuer()
	m.object.Status.State, m.object.DownSince, m.object.Session.ID = swarm.NodeStateReady, time.Time{}, "s"
	m.object.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(m.keys.Root.CertPEM()), CertIssuerSubject: subject, CertIssuerPublicKey: key}
}

// step: the leader's loop.
func (s *swarmModel) step() ca.Step {
	var nodes []*api.Node
	for _, m := range s.machines {
		nodes = append(nodes, m.object)
	}
	step, err := ca.Next(s.root, nodes, s.now)
	s.must(err)
	for _, id := range step.Renew {
		for _, m := range s.machines {
			if m.object.ID == id {
				m.object.Certificate.State = api.CertificateRotate
			}
		}
	}
	desired, err := ca.ParseRoot(ca.Desired(s.root), nil)
	s.must(err)
	for _, id := range step.Absent {
		for _, m := range s.machines {
			if m.object.ID == id {
				c := &m.object.Certificate
				c.Cert, c.State, c.Waiting = s.sign(m, c.CSR), api.CertificateIssued, true
				m.object.Description.TLSInfo = swarm.TLSInfo{TrustRoot: string(desired.CertPEM()), CertIssuerSubject: desired.Subject(), CertIssuerPublicKey: desired.PublicKey()}
			}
		}
	}
	if step.Done {
		s.ended++
		s.root, err = ca.Finish(s.root)
		s.must(err)
	}
	return step
}

func (s *swarmModel) update(c swarm.CAConfig) {
	change, err := ca.Settle(s.root, &c, s.now)
	s.must(err)
	s.root = change.Root
	if change.Next != nil {
		old, err := ca.ParseRoot(s.root.Cert, s.root.Key)
		s.must(err)
		cross, err := old.CrossSign(change.Next, s.now)
		s.must(err)
		s.root, err = ca.Begin(s.root, change.Next, cross, s.now)
		s.must(err)
	}
}

// everyoneTrustsEveryone is what no rotation may ever break, for machines that
// are away either: each trusts the certificate that each other has, or that waits
// for it. A machine that was away for too many rotations is lost, and removed.
func (s *swarmModel) everyoneTrustsEveryone() {
	s.machines = slices.DeleteFunc(s.machines, func(m *machine) bool { return s.ended-m.knows > ca.Remembered })
	for _, a := range s.machines {
		for _, b := range s.machines {
			if !s.trusts(a, b.keys.Cert) && !(b.object.Certificate.Waiting && s.trusts(a, b.object.Certificate.Cert)) {
				s.t.Fatalf("%s does not trust %s", a.object.ID, b.object.ID)
			}
		}
	}
}

func (s *swarmModel) trusts(m *machine, cert []byte) bool {
	pair := [2]string{string(m.keys.Root.CertPEM()), string(cert)}
	ok, seen := s.checked[pair]
	if !seen {
		_, _, err := m.keys.Root.Verify(cert, s.now)
		ok = err == nil
		s.checked[pair] = ok
	}
	return ok
}

func (s *swarmModel) pick() *machine {
	if len(s.machines) == 0 {
		return nil
	}
	return rapid.SampledFrom(s.machines).Draw(s.t, "machine")
}

func TestRotationNeverShutsANodeOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSwarmModel(t)
		up := func(do func(*machine)) func(*rapid.T) {
			return func(t *rapid.T) {
				if m := s.pick(); m != nil && m.up {
					s.connect(m)
					do(m)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"hear":   up(s.hear),
			"renew":  up(s.renew),
			"report": up(s.report),
			"step":   func(*rapid.T) { s.step() },
			"join": func(*rapid.T) {
				if len(s.machines) < 5 {
					s.join()
				}
			},
			"remove": func(t *rapid.T) {
				if len(s.machines) > 2 {
					i := rapid.IntRange(0, len(s.machines)-1).Draw(t, "which")
					s.machines = append(s.machines[:i:i], s.machines[i+1:]...)
				}
			},
			"down": func(*rapid.T) {
				if m := s.pick(); m != nil && m.up {
					m.up, m.object.Status.State, m.object.DownSince = false, swarm.NodeStateDown, s.now
				}
			},
			"back": func(*rapid.T) {
				if m := s.pick(); m != nil {
					m.up = true
				}
			},
			"time": func(*rapid.T) { s.now = s.now.Add(30 * time.Second) },
			"rotate": func(*rapid.T) { // all the way, without who is away
				s.forced++
				s.update(swarm.CAConfig{ForceRotate: s.forced})
				for range 10 {
					for _, m := range s.machines {
						if m.up {
							s.connect(m)
							s.hear(m)
							s.renew(m)
							s.report(m)
						}
					}
					s.now = s.now.Add(10 * time.Second)
					s.step()
				}
				if ca.Rotating(s.root) {
					t.Fatal("the rotation waits for who is away")
				}
			},
			"force": func(*rapid.T) {
				s.forced++
				s.update(swarm.CAConfig{ForceRotate: s.forced})
			},
			"give": func(t *rapid.T) {
				r := rapid.SampledFrom(s.brought).Draw(t, "root")
				key, err := r.KeyPEM()
				s.must(err)
				s.update(swarm.CAConfig{SigningCACert: string(r.CertPEM()), SigningCAKey: string(key), ForceRotate: s.forced})
			},
			"": func(*rapid.T) { s.everyoneTrustsEveryone() },
		})
		s.settles()
	})
}

// settles lets everybody do their part: the rotation must come to its end.
func (s *swarmModel) settles() {
	for range 10 {
		for _, m := range s.machines {
			m.up = true
			s.connect(m)
			s.hear(m)
			s.renew(m)
			s.report(m)
		}
		s.now = s.now.Add(2 * time.Minute) // patience with who lost a certificate
		s.step()
		s.everyoneTrustsEveryone()
	}
	if ca.Rotating(s.root) {
		s.t.Fatal("the rotation does not end")
	}
	want, err := ca.TLSInfo(s.root)
	s.must(err)
	for _, m := range s.machines {
		got := m.object.Description.TLSInfo
		if got.TrustRoot != want.TrustRoot || !bytes.Equal(got.CertIssuerPublicKey, want.CertIssuerPublicKey) {
			s.t.Fatalf("%s has another root than the swarm", m.object.ID)
		}
	}
}

func TestSettle(t *testing.T) {
	present, other := root(t), root(t)
	key, _ := present.KeyPEM()
	otherKey, _ := other.KeyPEM()
	r := &api.RootCA{Cert: present.CertPEM(), Key: key, LastForced: 3}
	cross, _ := present.CrossSign(other, now())
	rotating, err := ca.Begin(r, other, cross, now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := ca.NewRoot(now().Add(-20*365*24*time.Hour + 300*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	oldKey, _ := old.KeyPEM()
	with := func(cert, key []byte) swarm.CAConfig {
		return swarm.CAConfig{SigningCACert: string(cert), SigningCAKey: string(key), ForceRotate: 3}
	}
	for _, c := range []struct {
		name     string
		root     *api.RootCA
		config   swarm.CAConfig
		next     bool // a rotation begins
		rotating bool // one is under way after it
		external bool
		err      string
	}{
		{name: "nothing", root: r, config: with(nil, nil)},
		{name: "forced", root: r, config: swarm.CAConfig{ForceRotate: 4}, next: true},
		{name: "another root", root: r, config: with(other.CertPEM(), otherKey), next: true},
		{name: "another root, whose key is elsewhere", root: r, config: with(other.CertPEM(), nil), next: true, external: true},
		{name: "the root with text around it", root: r, config: with(append([]byte("Our root\n"), present.CertPEM()...), key)},
		{name: "the present key goes elsewhere", root: r, config: with(present.CertPEM(), nil), external: true},
		{name: "giving up", root: rotating, config: with(present.CertPEM(), key)},
		{name: "the same again", root: rotating, config: with(other.CertPEM(), otherKey), rotating: true},
		{name: "nothing, under way", root: rotating, config: with(nil, nil), rotating: true},
		{name: "forced, under way", root: rotating, config: swarm.CAConfig{ForceRotate: 4}, next: true, rotating: true},
		{name: "key alone", root: r, config: with(nil, key), err: "signing CA cert must also be provided"},
		{name: "another's key", root: r, config: with(other.CertPEM(), key), err: "do not belong together"},
		{name: "two", root: r, config: with(append(present.CertPEM()[:len(present.CertPEM()):len(present.CertPEM())], other.CertPEM()...), nil), err: "cannot contain multiple certificates"},
		{name: "a leaf", root: r, config: with(issue(t, present, swarm.NodeRoleManager).Cert, nil), err: "not a certificate authority"},
		{name: "an intermediate", root: r, config: with(cross, nil), err: "not self-signed"},
		{name: "nearly expired", root: r, config: with(old.CertPEM(), oldKey), err: "CA certificate expires too soon"},
		{name: "external over http", root: r, config: swarm.CAConfig{ForceRotate: 3, ExternalCAs: []*swarm.ExternalCA{{Protocol: "cfssl", URL: "http://x/"}}}, err: "https"},
		{name: "external of another kind", root: r, config: swarm.CAConfig{ForceRotate: 3, ExternalCAs: []*swarm.ExternalCA{{Protocol: "acme", URL: "https://x/"}}}, err: "cfssl"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ca.Settle(c.root, &c.config, now())
			if c.err != "" {
				wantInvalid(t, err, c.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (got.Next != nil) != c.next || ca.Rotating(got.Root) != c.rotating || got.External != c.external || got.Root.LastForced != c.config.ForceRotate {
				t.Errorf("next %v, rotating %v, external %v", got.Next != nil, ca.Rotating(got.Root), got.External)
			}
		})
	}
}

func TestBeginChecksTheCrossSignedRoot(t *testing.T) {
	old, next, other := root(t), root(t), root(t)
	r := &api.RootCA{Cert: old.CertPEM()}
	wrong, _ := old.CrossSign(other, now())
	_, err := ca.Begin(r, next, wrong, now())
	wantInvalid(t, err, "not the new root's key")
	wrong, _ = other.CrossSign(next, now())
	_, err = ca.Begin(r, next, wrong, now())
	wantInvalid(t, err, "unknown authority")
	_, err = ca.Begin(r, next, []byte("x"), now())
	wantInvalid(t, err, "one PEM certificate")
}
