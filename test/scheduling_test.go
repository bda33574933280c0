package test

import "testing"

// TestScheduling covers what labels of ours ask of the scheduler, and what becomes
// of tasks when their node has less than it had.
func TestScheduling(t *testing.T) {
	n := swarmNode(t, "--node-generic-resource", "gpu=a", "--node-generic-resource", "gpu=b")
	n.image(t, "app:1", "")
	const states = "{{.Name}} {{.DesiredState}} {{.CurrentState}} {{.Error}}"

	t.Run("priority", func(t *testing.T) {
		n.service(t, "low", "-d", "--stop-grace-period", "1s", "--replicas", "2", "--generic-resource", "gpu=1", "app:1", "sleep")
		n.awaitContainers(t, "low", 2)
		n.service(t, "high", "-d", "--stop-grace-period", "1s", "--label", "legion.schedule.priority=10", "--generic-resource", "gpu=1", "app:1", "sleep")
		n.awaitContainers(t, "high", 1)
		n.awaitContainers(t, "low", 1)
		n.awaitTask(t, "low", states, "shutdown", "preempted by high.1, of priority 10")
		n.awaitTask(t, "low", states, "pending", "insufficient resources on 1 node")
		n.docker(t, "service", "rm", "high")
		n.awaitContainers(t, "low", 2)
	})
	t.Run("affinity", func(t *testing.T) {
		n.service(t, "web", "-d", "--label", "legion.schedule.affinity=service==db", "app:1", "sleep")
		n.awaitTask(t, "web", states, "pending", "affinity to service db not satisfied on 1 node")
		n.service(t, "apart", "-d", "--label", "legion.schedule.affinity=service!=low", "app:1", "sleep")
		n.awaitTask(t, "apart", states, "pending", "anti-affinity to service low not satisfied on 1 node")
		n.service(t, "db", "-d", "app:1", "sleep")
		n.awaitContainers(t, "web", 1)
	})
	t.Run("bad labels", func(t *testing.T) {
		for label, word := range map[string]string{
			"legion.schedule.priority=high":      "priority",
			"legion.schedule.strategy=nearest":   "strategy",
			"legion.schedule.affinity=node==x":   "affinity",
			"legion.schedule.rebalance=possibly": "rebalance",
		} {
			contains(t, n.dockerFails(t, "service", "create", "-d", "--no-resolve-image", "--name", "bad", "--label", label, "app:1", "sleep").stderr, "legion.schedule."+word)
		}
	})
	t.Run("a resource is gone", func(t *testing.T) {
		n.stop(t)
		n.start(t, "--node-generic-resource", "gpu=b")
		n.awaitTask(t, "low", states, "assigned node no longer has the reserved gpu a")
		n.awaitContainers(t, "low", 1)
		n.awaitTask(t, "low", states, "pending", "insufficient resources on 1 node")
	})
}
