package ca

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/nacl/secretbox"
)

const (
	sealedType = "LEGION ENCRYPTED PRIVATE KEY"
	sealedForm = "Encryption"
	sealedAlgo = "hkdf-sha256, xsalsa20-poly1305"

	nonceSize = 24
	boxKey    = 32
)

// seal encrypts a PEM key with kek; with an empty kek it returns it as it is.
func seal(keyPEM, kek []byte) ([]byte, error) {
	if len(kek) == 0 {
		return keyPEM, nil
	}
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:]) // never fails, see crypto/rand
	key, err := derive(kek, nonce[:])
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{
		Type:    sealedType,
		Headers: map[string]string{sealedForm: sealedAlgo},
		Bytes:   secretbox.Seal(nonce[:], keyPEM, &nonce, key),
	}), nil
}

// open is the inverse of seal. A key in the clear is returned as it is. The
// error is ErrLocked when kek does not open it.
func open(sealed, kek []byte) ([]byte, error) {
	block, _ := pem.Decode(sealed)
	if block == nil {
		return nil, fmt.Errorf("no PEM key")
	}
	if block.Type != sealedType {
		return sealed, nil
	}
	if block.Headers[sealedForm] != sealedAlgo || len(block.Bytes) < nonceSize {
		return nil, fmt.Errorf("key encrypted in an unknown form %q", block.Headers[sealedForm])
	}
	var nonce [nonceSize]byte
	copy(nonce[:], block.Bytes)
	key, err := derive(kek, nonce[:])
	if err != nil {
		return nil, err
	}
	plain, ok := secretbox.Open(nil, block.Bytes[nonceSize:], &nonce, key)
	if !ok {
		return nil, ErrLocked
	}
	return plain, nil
}

func derive(kek, salt []byte) (*[boxKey]byte, error) {
	b, err := hkdf.Key(sha256.New, kek, salt, "legion node key", boxKey)
	if err != nil {
		return nil, err
	}
	return (*[boxKey]byte)(b), nil
}
