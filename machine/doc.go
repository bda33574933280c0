// Package machine keeps machines: computers, real or made on this one, that
// each run a Legion daemon. It knows their records, locks and verbs, which are
// docker-machine's; how a machine of one kind is made, entered and removed is
// its Driver's. See design/machine.md.
package machine
