package raftnode

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sealer encrypts what goes to disk. It is safe for concurrent use.
type Sealer interface {
	Seal(clear []byte) ([]byte, error)
	// Open must not change its argument.
	Open(sealed []byte) ([]byte, error)
}

// ErrKey means that data is encrypted with a key that is not at hand.
var ErrKey = errors.New("encrypted with a key that is not at hand")

const keyIDSize = 8

// Keyring is a Sealer with XChaCha20-Poly1305. Sealed data names its key by the
// first 8 bytes of the key's SHA-256, and has a random nonce of 24 bytes.
type Keyring struct {
	current [keyIDSize]byte
	keys    map[[keyIDSize]byte]cipher.AEAD
}

var _ Sealer = (*Keyring)(nil)

// NewKeyring returns a Sealer that seals with current, and opens with it and
// with old. Keys have 32 bytes.
func NewKeyring(current []byte, old ...[]byte) (*Keyring, error) {
	k := &Keyring{current: keyID(current), keys: map[[keyIDSize]byte]cipher.AEAD{}}
	for _, key := range append([][]byte{current}, old...) {
		a, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, fmt.Errorf("key of the log: %w", err)
		}
		k.keys[keyID(key)] = a
	}
	return k, nil
}

func keyID(key []byte) (id [keyIDSize]byte) {
	sum := sha256.Sum256(key)
	copy(id[:], sum[:])
	return id
}

// Seal encrypts.
func (k *Keyring) Seal(clear []byte) ([]byte, error) {
	const head = keyIDSize + chacha20poly1305.NonceSizeX
	b := make([]byte, head, head+len(clear)+chacha20poly1305.Overhead)
	copy(b, k.current[:])
	if _, err := rand.Read(b[keyIDSize:]); err != nil {
		return nil, err
	}
	return k.keys[k.current].Seal(b, b[keyIDSize:], clear, nil), nil
}

// Open decrypts. ErrKey if no key of the ring sealed it.
func (k *Keyring) Open(sealed []byte) ([]byte, error) {
	if len(sealed) < keyIDSize+chacha20poly1305.NonceSizeX {
		return nil, fmt.Errorf("%w: %d encrypted bytes", ErrCorrupt, len(sealed))
	}
	a := k.keys[[keyIDSize]byte(sealed)]
	if a == nil {
		return nil, ErrKey
	}
	rest := sealed[keyIDSize:]
	clear, err := a.Open(nil, rest[:chacha20poly1305.NonceSizeX], rest[chacha20poly1305.NonceSizeX:], nil)
	if err != nil {
		return nil, fmt.Errorf("%w: decryption failed", ErrCorrupt)
	}
	return clear, nil
}

// The ways that bytes on disk are written; the numbers never change.
const (
	modeClear  = 0
	modeSealed = 1
)

// seal applies s, if there is one.
func seal(s Sealer, clear []byte) (mode byte, data []byte, err error) {
	if s == nil {
		return modeClear, clear, nil
	}
	data, err = s.Seal(clear)
	return modeSealed, data, err
}

func unseal(s Sealer, mode byte, data []byte) ([]byte, error) {
	switch {
	case mode == modeClear:
		return data, nil
	case mode != modeSealed:
		return nil, fmt.Errorf("%w: unknown encryption %d: written by a newer version?", ErrCorrupt, mode)
	case s == nil:
		return nil, ErrKey
	}
	return s.Open(data)
}
