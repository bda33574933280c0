package executor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

func policy() api.Readiness {
	return api.Readiness{Test: "x", Interval: 5 * time.Second, Timeout: time.Second, StartPeriod: time.Minute, Retries: 2}
}

func TestVerdicts(t *testing.T) {
	p := policy()
	bad, ok := errors.New("bad"), error(nil)
	for _, c := range []struct {
		name  string
		from  verdict
		tests []error
		age   time.Duration
		want  verdict
	}{
		{"ready at once", verdict{}, []error{ok}, 0, verdict{known: true, ready: true, once: true}},
		{"the start period", verdict{}, []error{bad, bad, bad}, time.Second, verdict{}},
		{"one failure says nothing", verdict{}, []error{bad}, time.Hour, verdict{failures: 1}},
		{"not ready yet", verdict{}, []error{bad, bad, errors.New("other")}, time.Hour, verdict{known: true, failures: 3, why: "bad"}},
		{"one failure of a ready one", verdict{known: true, ready: true, once: true}, []error{bad}, time.Hour, verdict{known: true, ready: true, once: true, failures: 1}},
		{"not ready any more", verdict{known: true, ready: true, once: true}, []error{bad, bad}, time.Hour, verdict{known: true, once: true, failures: 2, why: "bad"}},
		{"failures are in a row", verdict{known: true, ready: true, once: true}, []error{bad, ok, bad}, time.Hour, verdict{known: true, ready: true, once: true, failures: 1}},
		{"ready again", verdict{known: true, once: true, failures: 9, why: "bad"}, []error{ok}, time.Hour, verdict{known: true, ready: true, once: true}},
	} {
		v := c.from
		for _, err := range c.tests {
			v = v.after(&p, err, c.age)
		}
		if v != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, v, c.want)
		}
	}
}

func TestPauses(t *testing.T) {
	p := policy()
	var all []string
	for tests := range 8 {
		all = append(all, verdict{}.pause(&p, tests).String())
	}
	if got := strings.Join(all, " "); got != "100ms 200ms 400ms 800ms 1.6s 3.2s 5s 5s" {
		t.Error(got)
	}
	if d := (verdict{once: true}).pause(&p, 0); d != p.Interval {
		t.Error(d)
	}
	if d := (verdict{}).pause(&p, 1<<40); d != p.Interval {
		t.Error(d)
	}
}

func TestReadinessIsTestedUntilTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := policy()
		p.StartPeriod = 0
		began := time.Now()
		// Ready after one second, away from 20 s to 40 s.
		r := newReadiness(p, func(context.Context) error {
			if age := time.Since(began); age < time.Second || age > 20*time.Second && age < 40*time.Second {
				return errors.New("bad")
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { r.run(ctx, began); close(done) }()
		var seen []string
		for range 4 {
			v, changed := r.get()
			seen = append(seen, time.Since(began).String()+" "+map[bool]string{true: "ready", false: "not ready " + v.why}[v.ready])
			<-changed
		}
		v, _ := r.get()
		seen = append(seen, time.Since(began).String()+" "+map[bool]string{true: "ready", false: "not ready"}[v.ready])
		if got, want := strings.Join(seen, ", "), "0s not ready , 100ms not ready bad, 1.5s ready, 26.5s not ready bad, 41.5s ready"; got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		cancel()
		<-done
	})
}

func TestFailuresAreOnOneLine(t *testing.T) {
	for want, r := range map[string]*container.HealthcheckResult{
		"its test ended with status 1":      {ExitCode: 1},
		"its test ended with status 2: a b": {ExitCode: 2, Output: "a\n  b\xff\n"},
		"no such program":                   {ExitCode: -1, Output: "no such program"},
		"its test ended with status 1: " + strings.Repeat("x", 200) + "…": {ExitCode: 1, Output: strings.Repeat("x", 4000)},
	} {
		if err := failure(r); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := failure(&container.HealthcheckResult{Output: "fine"}); err != nil {
		t.Error(err)
	}
}
