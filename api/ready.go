package api

import (
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// notReady begins the error in the status of a task that lives and can't serve.
const notReady = "not ready"

// NotReady is the error in the status of a task that lives and can't serve.
func NotReady(why string) string {
	if why == "" {
		return notReady
	}
	return notReady + ": " + why
}

// Ready reports whether a task is to be sent work: it runs, and its test of
// readiness, if its service has one, does not fail.
func Ready(t *Task) bool {
	return t.Status.State == swarm.TaskStateRunning && t.Status.Err != notReady && !strings.HasPrefix(t.Status.Err, notReady+": ")
}
