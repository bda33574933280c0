// Package executor runs tasks on the engine: agent/exec's Executor. A task's
// ContainerSpec becomes the options that `docker run` would give, and its
// container is found again by the task's id, which is a label on it.
package executor
