package api

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

func TestPolicyDefaults(t *testing.T) {
	p, err := ParsePolicy(map[string]string{"mine": "x", "legionnaire": "y"})
	if err != nil || !reflect.DeepEqual(p, DefaultPolicy()) {
		t.Fatalf("%+v, %v: want the defaults", p, err)
	}
}

func TestPolicyLabels(t *testing.T) {
	p, err := ParsePolicy(map[string]string{
		"legion.schedule.strategy": "binpack", "legion.schedule.affinity": "service==db, service!=~batch", "legion.schedule.rebalance": "false",
		"legion.schedule.priority": "-7", "legion.update.canary": "2", "legion.update.promote": "health", "legion.history": "3",
		"legion.rotate": "1", "legion.stopped": "true", "legion.ready.test": "curl -f localhost", "legion.ready.interval": "2s",
		"legion.ready.timeout": "1s", "legion.ready.start-period": "0s", "legion.ready.retries": "5",
		"legion.network.balance": "least", "legion.publish.on": "192.0.2.1, 10.1.2.3/8,fd00::/8,eth0.7", "legion.drain.delay": "0s",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Policy{
		Strategy: BinPack, Affinity: []Affinity{{Service: "db"}, {Service: "batch", Apart: true, Soft: true}}, Priority: -7,
		Canary: 2, Promote: PromoteHealth, History: 3, Rotate: true, Stopped: true,
		Ready:   Readiness{Test: "curl -f localhost", Interval: 2 * time.Second, Timeout: time.Second, Retries: 5},
		Balance: BalanceLeast, PublishOn: []string{"192.0.2.1", "10.1.2.3/8", "fd00::/8", "eth0.7"},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("have %+v\nwant %+v", p, want)
	}
}

// What a scheduler would undo is not balanced in the first place.
func TestPolicyRebalance(t *testing.T) {
	for label, ok := range map[string]bool{
		"legion.schedule.strategy=spread": true, "legion.schedule.strategy=random": false, "legion.schedule.strategy=binpack": false,
		"legion.schedule.affinity=service!=db": true, "legion.schedule.affinity=service==~db": false,
	} {
		k, v, _ := strings.Cut(label, "=")
		p, err := ParsePolicy(map[string]string{RebalanceLabel: "true", k: v})
		if (err == nil) != ok || p.Rebalance != ok || err != nil && !strings.Contains(err.Error(), RebalanceLabel) {
			t.Errorf("with %s: %v", label, err)
		}
	}
}

func TestPriority(t *testing.T) {
	for label, want := range map[string]int{"": 0, "7": 7, "-1000": -1000, "nope": 0} {
		if got := (&TaskSpec{ServiceLabels: map[string]string{PriorityLabel: label}}).Priority(); got != want {
			t.Errorf("%q: %d", label, got)
		}
	}
}

func TestPolicyRefuses(t *testing.T) {
	for label, values := range map[string][]string{
		"legion.schedule.strategy":  {"", "Spread", "nearest"},
		"legion.schedule.affinity":  {"", "db", "service=db", "service==", "node==a", "service==a,,", strings.Repeat("service==a,", 16) + "service==b"},
		"legion.schedule.rebalance": {"", "maybe"},
		"legion.schedule.priority":  {"", "high", "1001", "-1001", "1.5"},
		"legion.update.canary":      {"", "-1", "10%"},
		"legion.update.promote":     {"", "never"},
		"legion.history":            {"-1", "101"},
		"legion.rotate":             {""},
		"legion.stopped":            {"stop"},
		"legion.ready.test":         {"", strings.Repeat("x", 4097)},
		"legion.ready.interval":     {"5", "0s", "-1s", "25h"},
		"legion.ready.timeout":      {"1ms"},
		"legion.network.balance":    {"", "random", "Client"},
		"legion.publish.on":         {"", "10.0.0.1,", "10.0.0.300", "10.0.0.0/40", "fe80::1%eth0", "::ffff:10.0.0.1", "a device", "averylongdevicename", "a/b", strings.Repeat("eth0,", 32) + "eth1"},
		"legion.drain.delay":        {"", "-1s", "61s", "5"},
		"legion.ready.start-period": {"-1s"},
		"legion.ready.retries":      {"0"},
		"legion.nope":               {"x"},
		"legion.":                   {"x"},
	} {
		for _, v := range values {
			_, err := ParsePolicy(map[string]string{label: v})
			if !Is(err, Invalid) || !strings.Contains(err.Error(), label) {
				t.Errorf("%s=%q: %v: want a refusal that names it", label, v, err)
			}
		}
	}
}

func TestDataLabels(t *testing.T) {
	if err := CheckDataLabels(map[string]string{"a": "b", VersionOfLabel: "password"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []map[string]string{{VersionOfLabel: ""}, {"legion.rotate": "true"}} {
		if err := CheckDataLabels(bad); !Is(err, Invalid) {
			t.Errorf("%v: %v: want a refusal", bad, err)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add("legion.schedule.affinity", "service==a,service!=~b")
	f.Add("legion.ready.interval", "5s")
	f.Fuzz(func(t *testing.T, k, v string) {
		if _, err := ParsePolicy(map[string]string{k: v}); err != nil && !Is(err, Invalid) {
			t.Errorf("%s=%q: %v", k, v, err)
		}
	})
}

func TestLabelsOfWhatRuns(t *testing.T) {
	spec := func(k, v string) *TaskSpec { return &TaskSpec{ServiceLabels: map[string]string{k: v, "mine": v}} }
	for k, same := range map[string]bool{
		"mine": true, "legion.rotate": true, "legion.history": true,
		"legion.ready.test": false, "legion.ready.interval": false, "legion.templates": false,
	} {
		if got := spec(k, "1s").SameRun(spec(k, "2s")); got != same {
			t.Errorf("%s changed: same run %v, want %v", k, got, same)
		}
	}
	if !(&TaskSpec{ServiceLabels: map[string]string{"a": "b"}}).SameRun(&TaskSpec{}) {
		t.Error("labels of the user's own make another run")
	}
}

func TestReadinessCommand(t *testing.T) {
	for test, want := range map[string][]string{
		"curl -f x":         {"CMD-SHELL", "curl -f x"},
		"[ -e /ready ]":     {"CMD-SHELL", "[ -e /ready ]"},
		`["/app", "ready"]`: {"CMD", "/app", "ready"},
		"[]":                {"CMD-SHELL", "[]"},
		`["unfinished`:      {"CMD-SHELL", `["unfinished`},
	} {
		r, err := ParseReadiness(map[string]string{"legion.ready.test": test, "legion.history": "bad", "legion.nope": "x"})
		if err != nil || !reflect.DeepEqual(r.Command(), want) {
			t.Errorf("%s: %q, %v; want %q", test, r.Command(), err, want)
		}
	}
	if _, err := ParseReadiness(map[string]string{"legion.ready.retries": "0"}); !Is(err, Invalid) {
		t.Error(err)
	}
	if p, err := ParsePolicy(map[string]string{TemplatesLabel: "docker"}); err != nil || !p.DockerTemplates {
		t.Error(p, err)
	}
	if _, err := ParsePolicy(map[string]string{TemplatesLabel: "none"}); !Is(err, Invalid) {
		t.Error(err)
	}
}

func TestReady(t *testing.T) {
	for _, c := range []struct {
		state swarm.TaskState
		err   string
		want  bool
	}{
		{swarm.TaskStateRunning, "", true}, {swarm.TaskStateRunning, NotReady(""), false}, {swarm.TaskStateRunning, NotReady("no"), false},
		{swarm.TaskStateRunning, "not readying", true}, {swarm.TaskStateStarting, "", false}, {swarm.TaskStateFailed, "", false},
	} {
		if got := Ready(&Task{Status: swarm.TaskStatus{State: c.state, Err: c.err}}); got != c.want {
			t.Errorf("%s %q: %v", c.state, c.err, got)
		}
	}
}
