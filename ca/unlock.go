package ca

import (
	"crypto/rand"
	"encoding/base64"
	"strings"

	"github.com/legion-swarm/legion/api"
)

const (
	unlockPrefix = "SWMKEY-1-"
	unlockBytes  = 32
)

// NewUnlockKey makes the key that opens managers' files under autolock.
func NewUnlockKey() []byte {
	key := make([]byte, unlockBytes)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return key
}

// FormatUnlockKey writes an unlock key as users see it: SWMKEY-1- and unpadded
// base64. Empty for an empty key. It is a secret: don't log it.
func FormatUnlockKey(key []byte) string {
	if len(key) == 0 {
		return ""
	}
	return unlockPrefix + base64.RawStdEncoding.EncodeToString(key)
}

// ParseUnlockKey reads what FormatUnlockKey wrote. Invalid, without quoting it,
// when it is nothing of the kind.
func ParseUnlockKey(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(s), unlockPrefix)
	key, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if !ok || err != nil || len(key) != unlockBytes || strings.ContainsAny(text, "\r\n") {
		return nil, api.Errorf(api.Invalid, "invalid key string: an unlock key should look like SWMKEY-1-…; `docker swarm unlock-key` on a manager that is not locked shows the present one")
	}
	return key, nil
}
