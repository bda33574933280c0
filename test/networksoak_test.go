package test

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// TestNetworkSoak is the long form of TestNetwork: a stack fifty times, updates
// under 100,000 requests, and partitions until time is up. SOAK_MINUTES turns it
// on.
func TestNetworkSoak(t *testing.T) {
	minutes, _ := strconv.Atoi(os.Getenv("SOAK_MINUTES"))
	if minutes == 0 {
		t.Log("off: set SOAK_MINUTES, or run make soak")
		return
	}
	end := time.Now().Add(time.Duration(minutes) * time.Minute)
	s := newNetSwarm(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"a stack fifty times", func(t *testing.T) { s.testStackAgain(t, 50) }},
		{"updates under load", func(t *testing.T) {
			s.testUpdate(t, update{replicas: 32, parallelism: 4, rate: 500, updates: 1, requests: 100_000})
		}},
	} {
		if !t.Run(test.name, test.run) {
			return
		}
	}
	for n := 0; time.Now().Before(end); n++ {
		test := []struct {
			name string
			run  func(*testing.T)
		}{
			{"daemons crash", s.testDaemonsCrash}, {"managers are lost", s.testManagersLost},
			{"a node is cut off", func(t *testing.T) { s.testCutOff(t, 30*time.Second) }}, {"a node is lost", s.testNodeLost}, {"names", s.testNames},
		}[n%5]
		if !t.Run(test.name, test.run) {
			return
		}
	}
}
