// Package dispatcher is where a swarm's nodes meet its managers: sessions and
// heart-beats, what each node is to run, the statuses that come back, and the
// relay of logs.
//
// One watcher on the store feeds all sessions: a change marks the ids that it
// concerns at the sessions that it concerns, and each session reads the present
// state of those ids from a view when it is ready to send. Nothing is scanned
// per node, nothing is queued per change. Statuses and changes of nodes are
// gathered while earlier ones are being committed, and written together.
package dispatcher
