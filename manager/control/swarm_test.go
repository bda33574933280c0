package control

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/manager/netkeys"
	"github.com/legion-swarm/legion/store"
)

func TestCheckInit(t *testing.T) {
	pools := func(size uint32, cidrs ...string) *swarm.InitRequest {
		r := &swarm.InitRequest{SubnetSize: size}
		for _, c := range cidrs {
			r.DefaultAddrPool = append(r.DefaultAddrPool, netip.MustParsePrefix(c))
		}
		return r
	}
	spec := func(fn func(*swarm.Spec)) *swarm.InitRequest {
		r := &swarm.InitRequest{}
		fn(&r.Spec)
		return r
	}
	for _, c := range []struct {
		name string
		r    *swarm.InitRequest
		err  string
	}{
		{"nothing", &swarm.InitRequest{}, ""},
		{"pools", pools(26, "10.10.0.0/16", "10.20.0.0/16"), ""},
		{"pools of the usual size", pools(0, "10.10.0.0/24"), ""},
		{"a pool smaller than its networks", pools(16, "10.10.0.0/24"), "Subnet size is too small for pool: 16"},
		{"a pool smaller than the usual networks", pools(0, "10.10.0.0/25"), "Subnet size is too small for pool: 24"},
		{"networks larger than the usual pool", pools(5), "Subnet size is too small for pool: 5"},
		{"the smallest networks", pools(29, "10.10.0.0/24"), ""},
		{"networks of one task", pools(30), "subnet size is out of range: 30"},
		{"networks of two addresses from the usual pool", pools(31), "subnet size is out of range: 31"},
		{"networks of one address", pools(32, "10.10.0.0/24"), "subnet size is out of range: 32"},
		{"a pool twice", pools(24, "10.0.0.0/8", "10.10.0.0/16"), "default address pools overlap: 10.0.0.0/8 and 10.10.0.0/16"},
		{"an IPv6 pool", pools(64, "fd00::/48"), "subnet size is out of range"},
		{"an IPv6 pool of the usual size", pools(24, "fd00::/8"), "must be an IPv4 subnet"},
		{"a data path port", &swarm.InitRequest{DataPathPort: 7777}, ""},
		{"a low data path port", &swarm.InitRequest{DataPathPort: 1023}, "not in valid range (1024-49151)"},
		{"a high data path port", &swarm.InitRequest{DataPathPort: 49152}, "not in valid range (1024-49151)"},
		{"an availability", &swarm.InitRequest{Availability: "sometimes"}, `invalid Availability: "sometimes"`},
		{"a name", spec(func(s *swarm.Spec) { s.Name = "mine" }), `swarm spec must be named "default"`},
		{"an expiry", spec(func(s *swarm.Spec) { s.CAConfig.NodeCertExpiry = 59 * time.Minute }), "minimum certificate expiry time is: 1h0m0s"},
		{"a negative heart-beat", spec(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = -1 }), "heartbeat time period cannot be a negative duration"},
		{"a fast heart-beat", spec(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = time.Millisecond }), "at least 1s"},
		{"a slow heart-beat", spec(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = 24 * time.Hour }), ""},
		{"a heart-beat whose grace period is no number", spec(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = 1 << 62 }), "at most 24h"},
		{"ticks", spec(func(s *swarm.Spec) { s.Raft.ElectionTick, s.Raft.HeartbeatTick = 1, 1 }), "must be greater"},
		{"an external CA", spec(func(s *swarm.Spec) { s.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: "cfssl", URL: "x"}} }), "https://HOST/PATH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckInit(c.r)
			if c.err == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused(t, err, api.Invalid, c.err)
		})
	}
}

// What an update leaves out stays as it was.
func TestSwarmUpdateKeepsWhatIsNotSaid(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	update := func(s *swarm.Spec, r Rotations) *swarm.Swarm {
		t.Helper()
		was, err := f.SwarmInspect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.SwarmUpdate(ctx, was.Version.Index, s, r); err != nil {
			t.Fatal(err)
		}
		is, err := f.SwarmInspect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return is
	}
	s := &swarm.Spec{}
	s.Raft.SnapshotInterval, s.Raft.KeepOldSnapshots, s.Dispatcher.HeartbeatPeriod = 77, new(uint64(3)), 3*time.Second
	s.CAConfig.NodeCertExpiry = 10 * time.Hour
	update(s, Rotations{})
	got := update(&swarm.Spec{}, Rotations{}).Spec
	if got.Name != "default" || got.Raft.SnapshotInterval != 77 || *got.Raft.KeepOldSnapshots != 3 ||
		got.Dispatcher.HeartbeatPeriod != 3*time.Second || got.CAConfig.NodeCertExpiry != 10*time.Hour {
		t.Errorf("%+v", got)
	}
}

func TestUnlockKey(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	update := func(autolock bool, r Rotations) (string, error) {
		t.Helper()
		was, err := f.SwarmInspect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		was.Spec.EncryptionConfig.AutoLockManagers = autolock
		if err := f.SwarmUpdate(ctx, was.Version.Index, &was.Spec, r); err != nil {
			return "", err
		}
		return f.UnlockKey(ctx)
	}
	_, err := update(false, Rotations{UnlockKey: true})
	refused(t, err, api.Invalid, "autolock is not turned on")
	first, _ := update(true, Rotations{})
	same, _ := update(true, Rotations{})
	other, _ := update(true, Rotations{UnlockKey: true})
	none, _ := update(false, Rotations{})
	if _, err := ca.ParseUnlockKey(first); err != nil || same != first || other == first || none != "" {
		t.Errorf("keys: same %v, rotated %v, none %v: %v", same == first, other != first, none == "", err)
	}
}

// The roots follow the configuration, and secrets are not shown.
func TestSwarmUpdateRotates(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	was, _ := f.SwarmInspect(ctx)
	was.Spec.CAConfig.ForceRotate = 1
	if err := f.SwarmUpdate(ctx, was.Version.Index, &was.Spec, Rotations{}); err != nil {
		t.Fatal(err)
	}
	is, _ := f.SwarmInspect(ctx)
	if !is.RootRotationInProgress || is.TLSInfo.TrustRoot != was.TLSInfo.TrustRoot && was.TLSInfo.TrustRoot != "" || len(is.TLSInfo.CertIssuerPublicKey) == 0 {
		t.Errorf("in progress %v", is.RootRotationInProgress)
	}
	again := is.Spec
	if err := f.SwarmUpdate(ctx, is.Version.Index, &again, Rotations{WorkerToken: true}); err != nil {
		t.Fatal(err)
	}
	next, _ := f.SwarmInspect(ctx)
	token, err := ca.ParseToken(next.JoinTokens.Worker)
	if err != nil || !token.Trusts([]byte(next.TLSInfo.TrustRoot)) || !next.RootRotationInProgress {
		t.Errorf("until the rotation's end tokens are for the present root: %v", err)
	}
	root := testRoot(t)
	spec := next.Spec
	spec.CAConfig.SigningCACert, spec.CAConfig.SigningCAKey = string(root.Cert), string(root.Key)
	if err := f.SwarmUpdate(ctx, next.Version.Index, &spec, Rotations{}); err != nil {
		t.Fatal(err)
	}
	last, _ := f.SwarmInspect(ctx)
	if last.Spec.CAConfig.SigningCACert != "" || last.Spec.CAConfig.SigningCAKey != "" {
		t.Error("the root's key is shown")
	}
	outside := last.Spec
	other := testRoot(t)
	outside.CAConfig.SigningCACert = string(other.Cert)
	err = f.SwarmUpdate(ctx, last.Version.Index, &outside, Rotations{})
	if !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), "external CA") {
		t.Errorf("a root whose key nobody has: %v", err)
	}
}

// Keys of encrypted networks are replaced when that is asked for, if there are any.
func TestSwarmUpdateNetworkKeys(t *testing.T) {
	f := setUp(t)
	was, err := f.SwarmInspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused(t, f.SwarmUpdate(t.Context(), was.Version.Index, &was.Spec, Rotations{NetworkKeys: true}), api.Invalid, "no network of the swarm is encrypted")
	var id string
	if _, err := f.store.Update(t.Context(), func(tx *store.Tx) error {
		for c := range store.List[*api.Cluster](tx) {
			u := *c
			id, u.NetworkKeys.Keys = c.ID, []api.OverlayKey{{ID: 1}}
			return store.Put(tx, &u)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	was, _ = f.SwarmInspect(t.Context())
	if err := f.SwarmUpdate(t.Context(), was.Version.Index, &was.Spec, Rotations{NetworkKeys: true}); err != nil {
		t.Fatal(err)
	}
	if c := store.Get[*api.Cluster](f.store.View(), id); c.NetworkKeys.Replace != netkeys.Replaced || len(c.NetworkKeys.Keys) != 1 {
		t.Errorf("%+v", c.NetworkKeys)
	}
}
