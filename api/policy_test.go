package api

import (
	"reflect"
	"strings"
	"testing"
	"time"
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
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Policy{
		Strategy: BinPack, Affinity: []Affinity{{Service: "db"}, {Service: "batch", Apart: true, Soft: true}}, Priority: -7,
		Canary: 2, Promote: PromoteHealth, History: 3, Rotate: true, Stopped: true,
		Ready: Readiness{Test: "curl -f localhost", Interval: 2 * time.Second, Timeout: time.Second, Retries: 5},
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
