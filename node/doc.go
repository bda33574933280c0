// Package node assembles one node of a swarm: the engine with its runtime and
// network, this node's membership (manager, agent, certificates) and the
// Docker API on top. It is the only package that knows all the others, and it
// decides nothing that they could decide.
//
// A node always has an engine. It is a member of a swarm or not: membership is
// the content of <data-root>/swarm, and starts and stops as a whole.
package node
