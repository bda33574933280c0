// Package rotator has services that ask for it take up newer versions of their
// secrets and configs. A version is a secret or config with the label
// legion.version-of; taking it up is an ordinary update of the service, which rolls
// out, fails and is rolled back like any other.
package rotator
