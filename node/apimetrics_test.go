package node

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/legion-swarm/legion/dockerapi"
)

func TestAPIMetrics(t *testing.T) {
	m := newAPIMetrics()
	m.RequestDone(dockerapi.Route{Operation: "ServiceList"}, 200, time.Millisecond)
	m.RequestDone(dockerapi.Route{Operation: "SystemEvents", Streams: true}, 200, time.Hour)
	m.RequestDone(dockerapi.Route{}, 404, time.Millisecond)
	r := prometheus.NewRegistry()
	r.MustRegister(m.requests, m.seconds)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, f := range all {
		got[f.GetName()] = len(f.GetMetric())
	}
	if got["legion_api_requests_total"] != 3 || got["legion_api_request_seconds"] != 2 {
		t.Error(got)
	}
}
