// Package engine is what a Docker engine does on one node, as a library:
// containers, images, volumes, logs, exec, health checks, stats and events.
// Its methods take and return Docker's API types (version 1.44 and later),
// so package dockerapi serves them without conversion, and
// package engine/executor runs tasks with the same calls.
//
// The engine keeps its own records (one JSON file a container, written
// atomically) under the data root and leaves processes to a Runtime and
// network namespaces to a Networks. Restarting the engine stops no container:
// Restore adopts what runs and records what ended meanwhile.
package engine
