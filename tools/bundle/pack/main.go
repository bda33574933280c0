// Command pack compresses each program named on its command line with zstd,
// into DIR/NAME.zst, and writes DIR/SUMS: a line "sha256 version name" for
// each. Arguments: DIR, then NAME=VERSION=PATH.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: pack DIR NAME=VERSION=PATH...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(dir string, programs []string) error {
	var sums bytes.Buffer
	for _, p := range programs {
		f := strings.SplitN(p, "=", 3)
		if len(f) != 3 {
			return fmt.Errorf("%q is not NAME=VERSION=PATH", p)
		}
		data, err := os.ReadFile(f[2])
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		fmt.Fprintf(&sums, "%s %s %s\n", hex.EncodeToString(sum[:]), f[1], f[0])
		if err := pack(filepath.Join(dir, f[0]+".zst"), data); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "SUMS"), sums.Bytes(), 0o644)
}

func pack(path string, data []byte) error {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	return os.WriteFile(path, enc.EncodeAll(data, nil), 0o644)
}
