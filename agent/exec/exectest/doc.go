// Package exectest holds what every exec.Executor is held to (Executor), and a
// fake that passes it (Fake), for tests of agents and for simulations.
package exectest
