// Package keeper is the process of a node that holds what must not end with the
// daemon: the devices, the socket, the sessions and the keys of encrypted overlays,
// and the sockets and names of resolvers in sandboxes. It goes on with what it was
// last told while no daemon is there. The daemon's side of it is Client.
//
// They talk by a Unix socket of root's, or by the pair that the daemon starts the
// keeper with. A message is its length in four bytes, most significant first, and
// JSON of that length, at most maxMessage; files are passed along with the length
// (SCM_RIGHTS), at most maxFiles. The daemon asks, the keeper answers each request
// once it is done, in order; besides, it passes on what it logs. First the daemon
// says hello with Version. A keeper of the same version answers with what it holds,
// in several parts if that is much, another with its version only; then, and if it
// doesn't answer, the daemon ends it and starts one of its own. Nothing of that is
// ever written to a disk. A keeper serves one daemon, the last that has come.
//
// A keeper ends when it is told to, when it has no daemon and holds nothing, and
// when it has no daemon and its socket's name is gone.
package keeper
