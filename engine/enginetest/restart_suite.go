package enginetest

import (
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/legion-swarm/legion/api"
	"github.com/legion-swarm/legion/engine"
)

// beforeRestart makes one container in each state and returns their pids and
// streams.
func (s *runtimeSuite) beforeRestart(t *testing.T) (pids map[string]int, streams []*engine.Streams) {
	pids = make(map[string]int)
	start := func(id string, stdin bool, args ...string) *engine.Streams {
		st, err := s.r.Create(t.Context(), engine.RuntimeContainer{ID: id, Image: s.env.Image, Spec: Spec(args...), Stdin: stdin})
		if err != nil {
			t.Fatal(err)
		}
		if pids[id], err = s.r.Start(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, st)
		return st
	}
	start("restart-cat", true, "cat")
	line(t, start("restart-trap", false, "trap", "9").Stdout, "ready")
	drain(start("restart-done", false, "exit", "6"))
	s.exit(t, "restart-done")
	start("restart-paused", false, "sleep")
	if err := s.r.Pause(t.Context(), "restart-paused"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.r.Create(t.Context(), engine.RuntimeContainer{ID: "restart-created", Image: s.env.Image, Spec: Spec("exit", "4")}); err != nil {
		t.Fatal(err)
	}
	return pids, streams
}

func (s *runtimeSuite) afterRestart(t *testing.T, pids map[string]int) {
	ctx := t.Context()
	all := []string{"restart-cat", "restart-trap", "restart-done", "restart-paused", "restart-created"}
	for _, id := range all {
		t.Cleanup(func() { s.remove(t, id) })
		st := s.stateOf(t, id)
		want := engine.RuntimeState{ID: id, Pid: pids[id], Running: true}
		switch id {
		case "restart-done":
			want.Running, want.Code = false, 6
			if time.Since(st.At) > time.Minute {
				t.Errorf("%s ended at %v", id, st.At)
			}
		case "restart-paused":
			want.Paused = true
		case "restart-created":
			want.Running, want.Created, want.Pid = false, true, st.Pid
		}
		st.At = time.Time{}
		if st != want {
			t.Errorf("after the restart: %+v, want %+v", st, want)
		}
	}
	if e := s.exit(t, "restart-done"); e.Code != 6 { // at least once
		t.Errorf("%+v", e)
	}
	st, err := s.r.Attach(ctx, "restart-cat")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.r.Attach(ctx, "restart-cat")
	expect(t, "attach twice", err, api.Conflict)
	if _, err := io.WriteString(st.Stdin, "again\n"); err != nil {
		t.Fatal(err)
	}
	line(t, st.Stdout, "again")
	if err := st.Stdin.Close(); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, "restart-cat"); e.Code != 0 {
		t.Errorf("%+v", e)
	}
	if _, err := s.r.Start(ctx, "restart-created"); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, "restart-created"); e.Code != 4 {
		t.Errorf("%+v", e)
	}
	_, es, err := s.r.Exec(ctx, "restart-trap", "late", Spec("echo", "there").Process, false)
	if err != nil {
		t.Fatal(err)
	}
	line(t, es.Stdout, "there")
	if err := s.r.Kill(ctx, "restart-trap", int(syscall.SIGTERM), false); err != nil {
		t.Error(err)
	}
	if e := s.exit(t, "restart-trap"); e.Code != 9 || e.Pid != pids["restart-trap"] {
		t.Errorf("%+v", e)
	}
}
