package orchestrator_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/legion-swarm/legion/api"
)

var rewrite = flag.Bool("rewrite", false, "write what happens into the scenario files")

// TestScenarios runs testdata/*.txt. A line that begins with "> " is a command;
// what happens follows it, indented by two spaces; the rest is prose. The
// commands are in the method command. After each the swarm comes to rest.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			switch {
			case bytes.Equal(want, got):
			case *rewrite:
				if err := os.WriteFile(f, got, 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s went differently (-rewrite accepts it):\n%s", f, diff(string(want), string(got)))
			}
		})
	}
}

func replay(t *testing.T, scenario string) []byte {
	w := newWorld(t)
	var out bytes.Buffer
	w.log = func(format string, args ...any) { fmt.Fprintf(&out, "  "+format+"\n", args...) }
	for line := range strings.Lines(scenario) {
		switch {
		case strings.HasPrefix(line, "  "):
		case strings.HasPrefix(line, "> "):
			out.WriteString(line)
			w.command(strings.Fields(line[2:]))
		default:
			out.WriteString(line)
		}
	}
	return out.Bytes()
}

// diff shows the first lines that differ.
func diff(want, got string) string {
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return fmt.Sprintf("from line %d: want\n%s\ngot\n%s", i+1, strings.Join(a[i:min(i+8, len(a))], "\n"), strings.Join(b[min(i, len(b)):min(i+8, len(b))], "\n"))
		}
	}
	return ""
}

func (w *world) command(args []string) {
	switch args[0] {
	case "node": // node ID [LABEL=VALUE…]
		w.node(args[1], pairs(args[2:]))
	case "label": // label NODE LABEL=VALUE…
		w.setNode(args[1], func(n *api.Node) { n.Spec.Labels = pairs(args[2:]) })
	case "memory": // memory NODE GIGABYTES
		w.setNode(args[1], func(n *api.Node) { n.Description.Resources.MemoryBytes = int64(w.number(args[2])) << 30 })
	case "addresses": // addresses N: so many for all tasks
		w.addresses = w.number(args[1])
	case "gpus": // gpus NODE NAME…
		w.setNode(args[1], func(n *api.Node) {
			n.Description.Resources.GenericResources = nil
			for _, g := range args[2:] {
				n.Description.Resources.GenericResources = append(n.Description.Resources.GenericResources,
					swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: g}})
			}
		})
	case "drain", "pause", "activate": // drain NODE
		availability := map[string]swarm.NodeAvailability{"drain": "drain", "pause": "pause", "activate": "active"}[args[0]]
		w.setNode(args[1], func(n *api.Node) { n.Spec.Availability = availability })
	case "down": // down NODE
		w.setNode(args[1], func(n *api.Node) { n.Status.State = swarm.NodeStateDown })
	case "up":
		w.setNode(args[1], func(n *api.Node) { n.Status.State = swarm.NodeStateReady })
	case "hold": // hold NODE: its tasks stay as they are
		w.held[args[1]] = true
	case "go":
		delete(w.held, args[1])
	case "break": // break IMAGE WHY…: tasks of the image fail
		w.broken[args[1]] = strings.Join(args[2:], " ")
	case "mend":
		delete(w.broken, args[1])
	case "service": // service NAME KEY=VALUE…: creates or updates
		w.setService(args[1], func(s *swarm.ServiceSpec) {
			for k, v := range pairs(args[2:]) {
				w.set(s, k, v)
			}
		})
	case "stop", "start": // stop SERVICE
		w.setService(args[1], func(s *swarm.ServiceSpec) { s.Labels = api.SetStopped(s.Labels, args[0] == "stop") })
	case "rm":
		delete(w.services, args[1])
	case "rollback": // rollback SERVICE, as a user
		s := w.services[args[1]].Rollback()
		s.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: new(w.now), Message: "manually requested rollback"}
		w.services[args[1]] = s
	case "promote": // promote SERVICE, as a user
		s := *w.services[args[1]]
		s.Promoted = s.SpecVersion
		w.services[args[1]] = &s
	case "status": // status SERVICE: of its update
		if st := w.services[args[1]].UpdateStatus; st != nil {
			w.log("%s: %s", st.State, st.Message)
		}
	case "fail": // fail TASK
		w.status(args[1], swarm.TaskStateFailed, "task: non-zero exit (1)")
	case "complete":
		w.status(args[1], swarm.TaskStateComplete, "")
	case "wait": // wait DURATION
		d, err := time.ParseDuration(args[1])
		if err != nil {
			w.t.Fatal(err)
		}
		w.pass(d)
	case "history":
		w.history = int64(w.number(args[1]))
	case "tasks": // tasks: those that there are
		w.settle()
		for _, t := range w.sorted() {
			w.log("%-8s %-3s %-9s %-9s %s", t.ID, t.Spec.ContainerSpec.Image, t.NodeID, t.Status.State, t.DesiredState)
		}
	default:
		w.t.Fatalf("no command %q", args[0])
	}
	w.settle()
}

func pairs(args []string) map[string]string {
	m := map[string]string{}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		m[k] = v
	}
	return m
}

func (w *world) number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// job is the service's mode, as a new one so that older specs keep theirs.
func (w *world) job(s *swarm.ServiceSpec) *swarm.ReplicatedJob {
	j := swarm.ReplicatedJob{}
	if s.Mode.ReplicatedJob != nil {
		j = *s.Mode.ReplicatedJob
	}
	s.Mode.ReplicatedJob = &j
	return &j
}

// set sets one thing of a service.
func (w *world) set(s *swarm.ServiceSpec, key, value string) {
	duration := func() time.Duration {
		d, err := time.ParseDuration(value)
		if err != nil {
			w.t.Fatal(err)
		}
		return d
	}
	switch key {
	case "replicas":
		s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(w.number(value)))}
	case "global":
		s.Mode.Global = &swarm.GlobalService{}
	case "global-job":
		s.Mode.GlobalJob = &swarm.GlobalJob{}
	case "completions":
		w.job(s).TotalCompletions = new(uint64(w.number(value)))
	case "concurrent":
		w.job(s).MaxConcurrent = new(uint64(w.number(value)))
	case "image":
		s.TaskTemplate.ContainerSpec.Image = value
	case "force":
		s.TaskTemplate.ForceUpdate++
	case "constraint":
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{value}}
	case "memory", "gpu":
		r := &swarm.Resources{}
		if key == "memory" {
			r.MemoryBytes = int64(w.number(value)) << 30
		} else {
			r.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: int64(w.number(value))}}}
		}
		s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: r}
	case "strategy", "affinity", "rebalance", "priority":
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels["legion.schedule."+key] = strings.ReplaceAll(value, ":", "==")
	case "spread":
		s.TaskTemplate.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: value}}}}
	case "label":
		s.Labels = map[string]string{"label": value}
	case "condition":
		s.TaskTemplate.RestartPolicy.Condition = swarm.RestartPolicyCondition(value)
	case "delay":
		s.TaskTemplate.RestartPolicy.Delay = new(duration())
	case "attempts":
		s.TaskTemplate.RestartPolicy.MaxAttempts = new(uint64(w.number(value)))
	case "window":
		s.TaskTemplate.RestartPolicy.Window = new(duration())
	case "parallelism":
		s.UpdateConfig.Parallelism, s.RollbackConfig.Parallelism = uint64(w.number(value)), uint64(w.number(value))
	case "update-delay":
		s.UpdateConfig.Delay = duration()
	case "monitor":
		s.UpdateConfig.Monitor, s.RollbackConfig.Monitor = duration(), duration()
	case "order":
		s.UpdateConfig.Order = swarm.UpdateOrder(value)
	case "rollback-order":
		s.RollbackConfig.Order = swarm.UpdateOrder(value)
	case "rollback-parallelism":
		s.RollbackConfig.Parallelism = uint64(w.number(value))
	case "rollback-on-failure":
		s.RollbackConfig.FailureAction = swarm.FailureAction(value)
	case "ratio": // percent
		s.UpdateConfig.MaxFailureRatio = float32(w.number(value)) / 100
	case "canary", "promote":
		l := map[string]string{"legion.update." + key: value}
		for k, v := range s.Labels {
			if k != "legion.update."+key {
				l[k] = v
			}
		}
		s.Labels = l
	case "on-failure":
		s.UpdateConfig.FailureAction = swarm.FailureAction(value)
	case "port":
		s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{
			TargetPort: 80, PublishedPort: uint32(w.number(value)), PublishMode: swarm.PortConfigPublishModeHost,
		}}}
	default:
		w.t.Fatalf("a service has no %q", key)
	}
}
