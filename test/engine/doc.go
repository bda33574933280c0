// Package test holds the engine and its executor to their promises on the real
// runtime. It needs root.
package test
