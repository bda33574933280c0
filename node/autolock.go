package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/ca"
	"github.com/legion-swarm/legion/raftnode"
	"github.com/legion-swarm/legion/rpc"
	"github.com/legion-swarm/legion/swarmpb"
)

const (
	logKeySize = 32
	maxLogKeys = 4 // at once, while changes are left half-done
)

// errLocked has Docker's sentence.
var errLocked = api.Errorf(api.Unavailable, "%s", "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.")

// unlockWait bounds how long "swarm unlock" waits for the swarm to take the node in.
const unlockWait = 5 * time.Second

const (
	lockedLeave = "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message."
	wrongKey    = "swarm could not be unlocked: invalid key provided"
)

// vault is what a member has on disk that is secret: its key, and the keys that
// a manager's log is always encrypted with. Under autolock all of that is
// encrypted with the swarm's unlock key. Safe for concurrent use.
type vault struct {
	files ca.Files
	creds *rpc.Credentials // its keys are those on disk

	writing sync.Mutex // the files are written by one at a time

	mu     sync.Mutex
	kek    []byte        // what the files are encrypted with; nil: nothing
	locked chan struct{} // closed and replaced when kek has changed
}

// openVault reads the files with the key, and fills in the credentials.
func openVault(files ca.Files, kek []byte, creds *rpc.Credentials) (*vault, error) {
	keys, err := files.Load(kek, time.Now())
	if err != nil {
		return nil, err
	}
	if err := creds.Set(keys); err != nil {
		return nil, err
	}
	return &vault{files: files, creds: creds, kek: kek, locked: make(chan struct{})}, nil
}

func newLogKey() []byte {
	key := make([]byte, logKeySize)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return key
}

// keyring opens what any of the keys sealed, and seals with the first; nil
// without keys.
func keyring(keys [][]byte) (raftnode.Sealer, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	return raftnode.NewKeyring(keys[0], keys[1:]...)
}

// sealer is what the log on disk is encrypted with; nil for a node that is no
// manager, and for a log that was begun in the clear, until lock has mended that.
func (v *vault) sealer() (raftnode.Sealer, error) { return keyring(v.creds.Keys().LogKeys()) }

// key returns what the files are encrypted with, and a channel that is closed
// when that changes.
func (v *vault) key() ([]byte, <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.kek, v.locked
}

func (v *vault) setKey(kek []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.kek = kek
	close(v.locked)
	v.locked = make(chan struct{})
}

// take puts a new identity on disk and in use; the log's keys stay.
func (v *vault) take(keys *ca.Keys) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	kek, _ := v.key()
	return v.save(keys.WithLogKeys(v.creds.Keys().LogKeys()), kek)
}

// promote is take for a node that becomes a manager: its files, and the log that
// it does not have yet, are encrypted with the swarm's unlock key from the start.
func (v *vault) promote(keys *ca.Keys, kek []byte) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	if err := v.save(withFirstLogKey(keys), kek); err != nil {
		return err
	}
	v.setKey(kek)
	return nil
}

// withFirstLogKey gives the keys of a new manager one for its log.
func withFirstLogKey(keys *ca.Keys) *ca.Keys {
	return keys.WithLogKeys([][]byte{newLogKey()})
}

// unlockKeyFrom asks a manager for the swarm's unlock key, as the manager that
// keys make of this node. Empty without autolock.
func unlockKeyFrom(ctx context.Context, addr string, keys *ca.Keys) ([]byte, error) {
	creds := &rpc.Credentials{}
	if err := creds.Set(keys); err != nil {
		return nil, err
	}
	conn, err := rpc.DialManager(addr, creds)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing to do about it
	answer, err := swarmpb.NewCAClient(conn).GetUnlockKey(ctx, &swarmpb.GetUnlockKeyRequest{})
	if err != nil {
		return nil, fmt.Errorf("the swarm's unlock key: %w", err)
	}
	return answer.GetUnlockKey(), nil
}

// save writes keys. Callers hold writing.
func (v *vault) save(keys *ca.Keys, kek []byte) error {
	if err := v.files.Save(keys, kek); err != nil {
		return err
	}
	return v.creds.Set(keys)
}

// open leaves the files in the clear, without keys of a log: of a node that is
// no manager.
func (v *vault) open() error {
	v.writing.Lock()
	defer v.writing.Unlock()
	kek, _ := v.key()
	keys := v.creds.Keys()
	if len(kek) == 0 && len(keys.LogKeys()) == 0 {
		return nil
	}
	if err := v.save(keys.WithLogKeys(nil), nil); err != nil {
		return err
	}
	v.setKey(nil)
	return nil
}

// lock makes the files be encrypted with the key, or be in the clear if it is
// empty, and the log with a new key of its own. It goes on with what a crash left
// half-done, and encrypts a log that was in the clear. reseal encrypts the log
// anew.
//
// Every step leaves files with which the log can be read: new keys are on disk
// before they are used, and old ones until they are used no more.
func (v *vault) lock(kek []byte, reseal func(raftnode.Sealer) error) error {
	v.writing.Lock()
	defer v.writing.Unlock()
	old, _ := v.key()
	keys := v.creds.Keys().LogKeys()
	same := slices.Equal(old, kek)
	if same && len(keys) == 1 {
		return nil
	}
	if len(keys) == 0 || !same && len(keys) < maxLogKeys {
		keys = append([][]byte{newLogKey()}, keys...)
	}
	if err := v.save(v.creds.Keys().WithLogKeys(keys), kek); err != nil {
		return err
	}
	sealer, err := keyring(keys)
	if err == nil {
		err = reseal(sealer)
	}
	if err != nil {
		v.setKey(kek) // the files need it already
		return err
	}
	if err := v.save(v.creds.Keys().WithLogKeys(keys[:1]), kek); err != nil {
		return err
	}
	v.setKey(kek)
	return nil
}

// is reports whether the files are encrypted with the key, or in the clear if it
// is empty, and a manager's log with its present key only, and if not returns a channel that is closed when something changed.
func (v *vault) is(kek []byte) (bool, <-chan struct{}) {
	have, changed := v.key()
	keys, want := v.creds.Keys(), 0
	if keys.Identity().Role == swarm.NodeRoleManager {
		want = 1
	}
	return slices.Equal(have, kek) && len(keys.LogKeys()) == want, changed
}

// SwarmUnlock opens a locked manager's files and begins its membership.
func (s *swarmNode) SwarmUnlock(ctx context.Context, key string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	switch _, err := s.leading(); {
	case err == nil:
		return api.Errorf(api.Conflict, "swarm is not locked")
	case !errors.Is(err, errLocked):
		return err
	}
	kek, err := ca.ParseUnlockKey(key)
	if err != nil {
		return err
	}
	state, err := loadMembership(s.dir)
	if err != nil {
		return err
	}
	cfg := s.member(state, nil, true)
	cfg.kek = kek
	m, err := openMember(cfg)
	if errors.Is(err, ca.ErrLocked) {
		return api.Errorf(api.Unauthenticated, "%s", wrongKey)
	}
	if err != nil {
		return err
	}
	r := s.begin(m)
	ctx, cancel := context.WithTimeout(ctx, unlockWait)
	defer cancel()
	select {
	case <-r.ready:
	case <-r.done:
		return r.err
	case <-ctx.Done(): // as without a quorum of managers
	}
	return nil
}
