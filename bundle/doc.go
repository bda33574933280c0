// Package bundle finds the programs that run containers: runc, containerd's
// runc shim and Legion's init.
//
// A binary built with the tag "bundle" carries them (scripts/build-bundle makes
// them), so that one file is all that a node needs; they are unpacked below the
// data root at the first start, and their sums are checked at each. A binary
// built without the tag looks for them beside itself and in PATH.
package bundle
