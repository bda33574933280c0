package node

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/legion-swarm/legion/dockerapi"
)

// apiMetrics counts the API's requests by operation, as its reference names
// them, so that no client can make them grow.
type apiMetrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

var _ dockerapi.Metrics = (*apiMetrics)(nil)

func newAPIMetrics() *apiMetrics {
	return &apiMetrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "legion_api_requests_total", Help: "Requests to the API that were answered, by operation and HTTP status.",
		}, []string{"operation", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "legion_api_request_seconds", Help: "How long answers took, but for those that go on while the client listens.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"operation"}),
	}
}

// RequestDone implements dockerapi.Metrics.
func (m *apiMetrics) RequestDone(route dockerapi.Route, status int, took time.Duration) {
	op := route.Operation
	if op == "" {
		op = "none"
	}
	m.requests.WithLabelValues(op, strconv.Itoa(status)).Inc()
	if !route.Streams {
		m.seconds.WithLabelValues(op).Observe(took.Seconds())
	}
}
