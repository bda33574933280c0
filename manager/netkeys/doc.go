// Package netkeys has the leader make and change the keys of encrypted networks.
// There are three at a time: one that nodes sent with before, one that they send
// with, and one that they will send with next, which is known to all for as long as
// keys are in use. So it does not matter in which order nodes hear of a change, and
// one that hears nothing for twelve hours loses no packet.
package netkeys
