// Package control is what users do to a swarm: reads, and writes that are
// validated as Docker does. It knows nothing of HTTP; its methods take and
// return Docker's API types, and errors have classes of package api.
package control
