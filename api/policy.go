package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PolicyPrefix begins the labels by which services, secrets and configs say what
// Docker's API has no field for. See design/labels.md.
const PolicyPrefix = "legion."

// Strategy says which of the nodes that can take a task does.
type Strategy string

// The strategies. Spread is the default, and Docker's.
const (
	// Spread takes the node with the fewest tasks of the service, then of all.
	Spread Strategy = "spread"
	// BinPack takes the node with the least unreserved CPU and memory on which
	// the task fits.
	BinPack Strategy = "binpack"
	// Random takes any.
	Random Strategy = "random"
)

// Promotion says what lets an update go on after its canaries.
type Promotion string

// The kinds of promotion.
const (
	// PromoteManual waits for a user.
	PromoteManual Promotion = "manual"
	// PromoteHealth goes on when all canaries have run for the time of monitoring.
	PromoteHealth Promotion = "health"
)

// Affinity is a rule about which services share nodes.
type Affinity struct {
	// Service is the other service's name.
	Service string
	// Apart keeps off nodes that have tasks of the service; without it, only nodes
	// that have some are taken.
	Apart bool
	// Soft is a preference, not a condition.
	Soft bool
}

// Readiness is a check of whether a task that lives can serve, apart from the
// image's health check. The zero value: there is none.
type Readiness struct {
	// Test is a line for the container's shell, or a JSON list: a command.
	Test string
	// Interval between checks, Timeout of one, StartPeriod in which failures do not
	// count.
	Interval, Timeout, StartPeriod time.Duration
	// Retries is how many failures in a row make a task not ready.
	Retries int
}

// Command is the test in Docker's form for health checks: CMD and a command, or
// CMD-SHELL and a line.
func (r *Readiness) Command() []string {
	var list []string
	if json.Unmarshal([]byte(r.Test), &list) == nil && len(list) > 0 {
		return append([]string{"CMD"}, list...)
	}
	return []string{"CMD-SHELL", r.Test}
}

// Policy is what a service's labels ask for beyond Docker's API.
type Policy struct {
	Strategy Strategy
	Affinity []Affinity
	// Rebalance moves tasks to nodes that have become available, as the update
	// policy paces it.
	Rebalance bool
	// Priority over other services, -1000 to 1000: a task that finds no room may
	// take that of tasks of lower priority.
	Priority int
	// Canary is how many tasks an update replaces before it waits for Promote; 0:
	// it does not wait.
	Canary  int
	Promote Promotion
	// History is how many earlier versions of the service are kept.
	History int
	// Rotate has the service take up newer versions of its secrets and configs.
	Rotate bool
	// Stopped services keep their scale and have no tasks.
	Stopped bool
	// DockerTemplates has only those templates expanded that Docker expands.
	DockerTemplates bool
	Ready           Readiness
	// Balance is how new connections are given to tasks.
	Balance Balance
	// PublishOn restricts ports of the routing mesh to addresses of nodes, to
	// prefixes that these are in, and to devices; empty: all addresses.
	PublishOn []string
	// DrainDelay is how long a task serves on when it is to stop, so that everyone
	// has heard that it gets no more work.
	DrainDelay time.Duration
}

// Balance is how new connections are given to a service's tasks.
type Balance string

// Ways to choose a task.
const (
	// BalanceRandom gives each the same share.
	BalanceRandom Balance = ""
	// BalanceClient gives connections of one client address to one task.
	BalanceClient Balance = "client"
	// BalanceLeast prefers, of two tasks, the one with fewer connections.
	BalanceLeast Balance = "least"
)

// DefaultDrainDelay is long enough for the change to reach all nodes.
const DefaultDrainDelay = 300 * time.Millisecond

// DefaultHistory is how many versions of a service are kept.
const DefaultHistory = 10

// DefaultPolicy is that of a service without labels of ours.
func DefaultPolicy() Policy {
	return Policy{
		Strategy: Spread, Promote: PromoteManual, History: DefaultHistory, DrainDelay: DefaultDrainDelay,
		Ready: Readiness{Interval: 5 * time.Second, Timeout: 5 * time.Second, Retries: 3},
	}
}

const (
	maxPriority   = 1000
	maxHistory    = 100
	maxCanary     = 1 << 20
	maxAffinities = 16
	maxRetries    = 1000
	maxInterval   = 24 * time.Hour
	minInterval   = 100 * time.Millisecond
	maxTestLength = 4096
	maxDrainDelay = time.Minute
	maxPublishOn  = 32
)

// policyLabels says how the value of each label is read.
func policyLabels() map[string]func(p *Policy, value string) error {
	return map[string]func(p *Policy, value string) error{
		"legion.schedule.strategy":  func(p *Policy, v string) error { return oneOf(&p.Strategy, v, Spread, BinPack, Random) },
		"legion.schedule.affinity":  func(p *Policy, v string) (err error) { p.Affinity, err = parseAffinity(v); return err },
		"legion.schedule.rebalance": func(p *Policy, v string) error { return boolean(&p.Rebalance, v) },
		"legion.schedule.priority":  func(p *Policy, v string) error { return integer(&p.Priority, v, -maxPriority, maxPriority) },
		"legion.update.canary":      func(p *Policy, v string) error { return integer(&p.Canary, v, 0, maxCanary) },
		"legion.update.promote":     func(p *Policy, v string) error { return oneOf(&p.Promote, v, PromoteManual, PromoteHealth) },
		"legion.history":            func(p *Policy, v string) error { return integer(&p.History, v, 0, maxHistory) },
		"legion.rotate":             func(p *Policy, v string) error { return boolean(&p.Rotate, v) },
		StoppedLabel:                func(p *Policy, v string) error { return boolean(&p.Stopped, v) },
		TemplatesLabel:              func(p *Policy, v string) error { return templates(&p.DockerTemplates, v) },
		"legion.ready.test":         func(p *Policy, v string) error { return text(&p.Ready.Test, v, maxTestLength) },
		"legion.ready.interval":     func(p *Policy, v string) error { return duration(&p.Ready.Interval, v, minInterval) },
		"legion.ready.timeout":      func(p *Policy, v string) error { return duration(&p.Ready.Timeout, v, minInterval) },
		"legion.ready.start-period": func(p *Policy, v string) error { return duration(&p.Ready.StartPeriod, v, 0) },
		"legion.ready.retries":      func(p *Policy, v string) error { return integer(&p.Ready.Retries, v, 1, maxRetries) },
		"legion.network.balance":    func(p *Policy, v string) error { return oneOf(&p.Balance, v, BalanceClient, BalanceLeast) },
		"legion.publish.on":         func(p *Policy, v string) (err error) { p.PublishOn, err = parsePublishOn(v); return err },
		DrainLabel:                  func(p *Policy, v string) error { return durationUpTo(&p.DrainDelay, v, 0, maxDrainDelay) },
	}
}

// ParsePolicy reads a service's labels. Those that do not begin with PolicyPrefix
// are the user's own. Invalid: one that does has a bad value, or is not
// known; the error names it.
func ParsePolicy(labels map[string]string) (Policy, error) {
	p := DefaultPolicy()
	ours := slices.DeleteFunc(slices.Sorted(maps.Keys(labels)), func(k string) bool { return !strings.HasPrefix(k, PolicyPrefix) })
	if len(ours) == 0 {
		return p, nil
	}
	known := policyLabels()
	for _, k := range ours {
		read, ok := known[k]
		if !ok {
			return Policy{}, Errorf(Invalid, "label %s: there is no such option for services; there are %s", k,
				strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if err := read(&p, labels[k]); err != nil {
			return Policy{}, Errorf(Invalid, "label %s: %v", k, err)
		}
	}
	if p.Rebalance && (p.Strategy != Spread || slices.ContainsFunc(p.Affinity, func(a Affinity) bool { return a.Soft })) {
		return Policy{}, Errorf(Invalid, "label %s: true goes only with strategy %s and without affinities that are preferences: they would undo its moves",
			RebalanceLabel, Spread)
	}
	return p, nil
}

// Labels that are looked at one by one, where it would cost too much to parse all.
const (
	RebalanceLabel = PolicyPrefix + "schedule.rebalance"
	AffinityLabel  = PolicyPrefix + "schedule.affinity"
	PriorityLabel  = PolicyPrefix + "schedule.priority"
)

// Priority is that of the service when the spec was made.
func (s *TaskSpec) Priority() int {
	if len(s.ServiceLabels) == 0 {
		return 0
	}
	p := 0
	if v, ok := s.ServiceLabels[PriorityLabel]; ok && integer(&p, v, -maxPriority, maxPriority) != nil {
		return 0 // never: it was checked when the service was written
	}
	return p
}

// TemplatesLabel says which templates of a service are expanded: TemplatesDocker
// or TemplatesAll, the default.
const (
	TemplatesLabel  = "legion.templates"
	TemplatesAll    = "all"
	TemplatesDocker = "docker"
)

// readyPrefix begins the labels of Readiness.
const readyPrefix = "legion.ready."

// runLabels are the service's labels that make a difference to a task that runs.
func runLabels(labels map[string]string) map[string]string {
	var out map[string]string
	for k, v := range labels {
		if strings.HasPrefix(k, readyPrefix) || k == TemplatesLabel {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

// ParseReadiness reads what a service's labels say of readiness, and no others.
// Errors as ParsePolicy.
func ParseReadiness(labels map[string]string) (Readiness, error) {
	p, err := ParsePolicy(runLabels(labels))
	return p.Ready, err
}

// DrainLabel says how long a task serves on when it is to stop.
const DrainLabel = PolicyPrefix + "drain.delay"

// ParseDrainDelay reads what a service's labels say of draining, and no others.
// Errors as ParsePolicy.
func ParseDrainDelay(labels map[string]string) (time.Duration, error) {
	v, ok := labels[DrainLabel]
	if !ok {
		return DefaultDrainDelay, nil
	}
	p, err := ParsePolicy(map[string]string{DrainLabel: v})
	return p.DrainDelay, err
}

// VersionOfLabel marks a secret or config as a newer version of the one that it
// names: services that rotate take it up in its place.
const VersionOfLabel = "legion.version-of"

// CheckDataLabels returns Invalid, naming the label, if a secret's or
// config's labels of ours are bad or unknown.
func CheckDataLabels(labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		switch {
		case !strings.HasPrefix(k, PolicyPrefix):
		case k != VersionOfLabel:
			return Errorf(Invalid, "label %s: there is no such option for secrets and configs; there is %s", k, VersionOfLabel)
		case labels[k] == "":
			return Errorf(Invalid, "label %s: want the name that services know it by", k)
		}
	}
	return nil
}

// parseAffinity reads rules such as "service==db,service!=~batch".
func parseAffinity(v string) ([]Affinity, error) {
	var out []Affinity
	for rule := range strings.SplitSeq(v, ",") {
		rule = strings.TrimSpace(rule)
		op := "=="
		left, name, ok := strings.Cut(rule, op)
		if !ok {
			op = "!="
			left, name, ok = strings.Cut(rule, op)
		}
		name, soft := strings.CutPrefix(strings.TrimSpace(name), "~")
		if !ok || strings.TrimSpace(left) != "service" || name == "" {
			return nil, fmt.Errorf("%q is not a rule: want service==NAME or service!=NAME, with ~ before NAME for a preference", rule)
		}
		if len(out) == maxAffinities {
			return nil, fmt.Errorf("more than %d rules", maxAffinities)
		}
		out = append(out, Affinity{Service: name, Apart: op == "!=", Soft: soft})
	}
	return out, nil
}

func oneOf[T ~string](to *T, v string, known ...T) error {
	if !slices.Contains(known, T(v)) {
		return fmt.Errorf("%q is none of %v", v, known)
	}
	*to = T(v)
	return nil
}

func templates(docker *bool, v string) error {
	if v != TemplatesAll && v != TemplatesDocker {
		return fmt.Errorf("%q is none of [%s %s]", v, TemplatesAll, TemplatesDocker)
	}
	*docker = v == TemplatesDocker
	return nil
}

func boolean(to *bool, v string) error {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", v)
	}
	*to = b
	return nil
}

func integer(to *int, v string, low, high int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return fmt.Errorf("%q is not a whole number from %d to %d", v, low, high)
	}
	*to = n
	return nil
}

func duration(to *time.Duration, v string, low time.Duration) error {
	return durationUpTo(to, v, low, maxInterval)
}

func durationUpTo(to *time.Duration, v string, low, high time.Duration) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < low || d > high {
		return fmt.Errorf("%q is not a duration from %s to %s, such as 10s", v, low, high)
	}
	*to = d
	return nil
}

func text(to *string, v string, most int) error {
	if v == "" || len(v) > most {
		return fmt.Errorf("want 1 to %d characters, have %d", most, len(v))
	}
	*to = v
	return nil
}
