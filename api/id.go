package api

import (
	"crypto/rand"
	"math/big"
)

const idLength = 25

// NewID returns a new identifier for an object of the cluster: 25 characters of
// base 36, from 128 random bits, the form that Docker's swarm objects have.
// Safe for concurrent use.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	s := new(big.Int).SetBytes(b[:]).Text(36)
	id := make([]byte, idLength)
	pad := idLength - len(s)
	for i := range pad {
		id[i] = '0'
	}
	copy(id[pad:], s)
	return string(id)
}
