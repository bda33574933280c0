// Package enginetest holds the conformance suites of package engine's seams:
// Runtime and Images. The real ones and the fakes pass them, so that a fake
// can stand in for the real one in tests of everything above.
package enginetest
