package ca

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"math/big"
	"strings"

	"github.com/legion-swarm/legion/api"
)

const (
	tokenPrefix  = "SWMTKN"
	tokenVersion = "1"
	// tokenVersionFIPS is what Docker gives out in FIPS mode; it has a field more.
	tokenVersionFIPS = "2"

	digestDigits = 50 // of base 36, for 256 bits
	secretDigits = 25 // of base 36, for 128 bits
	secretBytes  = 16
)

// Token is a parsed join token: which root to trust, and the secret that decides
// the role.
type Token struct {
	Digest string // hexadecimal SHA-256 of the root certificate's PEM
	Secret string
}

// NewToken makes a token for the root with a new random secret.
func NewToken(r *Root) string {
	var b [secretBytes]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return Token{Digest: r.Digest(), Secret: base36(b[:], secretDigits)}.String()
}

// String returns the token's text. It is a secret: don't log it.
func (t Token) String() string {
	sum, err := hex.DecodeString(t.Digest)
	if err != nil {
		return ""
	}
	return strings.Join([]string{tokenPrefix, tokenVersion, base36(sum, digestDigits), t.Secret}, "-")
}

// ParseToken reads a join token. Invalid, without quoting it, when it is none.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(s, "-")
	if len(parts) == 5 && parts[0] == tokenPrefix && parts[1] == tokenVersionFIPS {
		return Token{}, api.Errorf(api.Invalid, "invalid join token: it is of a FIPS swarm, which is not supported")
	}
	if len(parts) != 4 || parts[0] != tokenPrefix || parts[1] != tokenVersion ||
		len(parts[2]) != digestDigits || len(parts[3]) != secretDigits || !isBase36(parts[2]) || !isBase36(parts[3]) {
		return Token{}, api.Errorf(api.Invalid, "invalid join token: it should look like SWMTKN-1-…-…; `docker swarm join-token worker` on a manager shows the present one")
	}
	n, ok := new(big.Int).SetString(parts[2], 36)
	if !ok || n.BitLen() > sha256.Size*8 {
		return Token{}, api.Errorf(api.Invalid, "invalid join token: its digest is out of range")
	}
	var sum [sha256.Size]byte
	n.FillBytes(sum[:])
	return Token{Digest: hex.EncodeToString(sum[:]), Secret: parts[3]}, nil
}

// Trusts reports whether the token is for the root with this PEM certificate.
func (t Token) Trusts(certPEM []byte) bool {
	sum := sha256.Sum256(certPEM)
	return subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(t.Digest)) == 1
}

// SameToken compares two tokens in constant time; an empty one is never the same.
func SameToken(given, want string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

func base36(b []byte, digits int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	return strings.Repeat("0", digits-len(s)) + s
}

func isBase36(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
