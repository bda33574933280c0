// Package test has the end-to-end tests: real daemons from bin/legion, real
// containers, driven by the stock docker command, by legion itself and by bare
// HTTP. They need root and what `make` builds. Every test has a node of its
// own, with its data below /var/tmp, and checks that nothing of it is left
// behind.
package test
