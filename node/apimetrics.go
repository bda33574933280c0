package node

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/legion-swarm/legion/dockerapi"
)

// apiMetrics counts the API's requests by operation, as its reference names
// them, so that no client can make them grow.
type apiMetrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	known    sync.Map // answer → *answerMetrics: to find them by their labels takes longer
}

type answer struct {
	operation string
	status    int
}

type answerMetrics struct {
	requests prometheus.Counter
	seconds  prometheus.Observer // nil for answers that go on while the client listens
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
	k := answer{route.Operation, status}
	if k.operation == "" {
		k.operation = "none"
	}
	v, ok := m.known.Load(k)
	if !ok {
		n := &answerMetrics{requests: m.requests.WithLabelValues(k.operation, strconv.Itoa(status))}
		if !route.Streams {
			n.seconds = m.seconds.WithLabelValues(k.operation)
		}
		v, _ = m.known.LoadOrStore(k, n)
	}
	if a, ok := v.(*answerMetrics); ok {
		a.requests.Inc()
		if a.seconds != nil {
			a.seconds.Observe(took.Seconds())
		}
	}
}
