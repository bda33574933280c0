package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
	"github.com/legion-swarm/legion/store"
)

// serveMetrics answers /metrics on the address until ctx ends.
func (n *Node) serveMetrics(ctx context.Context, addr string) error {
	r := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), newNodeCollector(n), n.api.requests, n.api.seconds} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{}))
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// nodeCollector reads the node when it is asked.
type nodeCollector struct {
	node                                             *Node
	containers, objects, nodes, tasks, leader, index *prometheus.Desc
	encrypted, encryptedBytes, dropped, keepersLost  *prometheus.Desc
	sets, setSeconds                                 *prometheus.Desc
}

func newNodeCollector(n *Node) *nodeCollector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("legion_"+name, help, labels, nil)
	}
	return &nodeCollector{
		node:       n,
		containers: desc("containers", "Containers on this node, by state.", "state"),
		objects:    desc("swarm_objects", "Objects of the swarm in this manager's store, by kind.", "kind"),
		nodes:      desc("swarm_nodes", "Nodes of the swarm, by state.", "state"),
		tasks:      desc("swarm_tasks", "Tasks of the swarm, by state.", "state"),
		leader:     desc("raft_leader", "1 if this manager leads."),
		index:      desc("raft_applied_index", "Index of the last log entry that was applied."),

		encrypted:      desc("overlay_encrypted_packets_total", "Packets of encrypted networks that went between nodes.", "direction"),
		encryptedBytes: desc("overlay_encrypted_bytes_total", "Bytes of frames of encrypted networks that went between nodes.", "direction"),
		sets:           desc("network_sets_total", "How often the node's network was made what it should be."),
		setSeconds:     desc("network_set_seconds_total", "Time that was spent on that, by part.", "part"),
		dropped:        desc("overlay_encrypted_dropped_total", "What encrypted networks have dropped, by reason.", "reason"),
		keepersLost:    desc("keepers_lost_total", "Keepers, which carry encrypted networks and answer names, that ended by themselves and were replaced."),
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.containers, c.objects, c.nodes, c.tasks, c.leader, c.index, c.encrypted, c.encryptedBytes, c.dropped, c.keepersLost, c.sets, c.setSeconds} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if list, err := c.node.engine.ContainerList(context.Background(), engine.ContainerListOptions{All: true}); err == nil {
		by := map[container.ContainerState]int{container.StateRunning: 0}
		for i := range list {
			by[list[i].State]++
		}
		for s, v := range by {
			gauge(c.containers, float64(v), string(s))
		}
	}
	c.collectEncrypted(ch)
	times := c.node.plane.SetTimes()
	ch <- prometheus.MustNewConstMetric(c.sets, prometheus.CounterValue, float64(times.Sets))
	for part, d := range times.Parts {
		ch <- prometheus.MustNewConstMetric(c.setSeconds, prometheus.CounterValue, d.Seconds(), part)
	}
	p, err := c.node.swarm.leading()
	if err != nil {
		return
	}
	view := p.store.View()
	gauge(c.objects, float64(store.Count[*api.Node](view)), "node")
	gauge(c.objects, float64(store.Count[*api.Service](view)), "service")
	gauge(c.objects, float64(store.Count[*api.Secret](view)), "secret")
	gauge(c.objects, float64(store.Count[*api.Config](view)), "config")
	gauge(c.objects, float64(store.Count[*api.Network](view)), "network")
	nodes := map[string]int{}
	for n := range store.List[*api.Node](view) {
		nodes[string(n.Status.State)]++
	}
	for s, v := range nodes {
		gauge(c.nodes, float64(v), s)
	}
	states := map[string]int{}
	for t := range store.List[*api.Task](view) {
		states[string(t.Status.State)]++
	}
	for s, v := range states {
		gauge(c.tasks, float64(v), s)
	}
	st := p.raft.Status()
	leads := 0.0
	if st.IsLeader {
		leads = 1
	}
	gauge(c.leader, leads)
	gauge(c.index, float64(st.Applied))
}

func (c *nodeCollector) collectEncrypted(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), label)
	}
	s, lost := c.node.plane.KeeperStatus()
	n := s.Counts
	ch <- prometheus.MustNewConstMetric(c.keepersLost, prometheus.CounterValue, float64(lost))
	counter(c.encrypted, n.Sent, "sent")
	counter(c.encrypted, n.Received, "received")
	counter(c.encryptedBytes, n.SentBytes, "sent")
	counter(c.encryptedBytes, n.ReceivedBytes, "received")
	for reason, v := range n.Dropped {
		counter(c.dropped, v, reason)
	}
}
