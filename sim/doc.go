// Package sim tests a whole swarm in one process: managers and agents as they
// are, on a network and on disks that fail as a seed says, in a bubble of virtual
// time. See design/sim.md.
package sim
